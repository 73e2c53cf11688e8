# ends with 3: what is no migration stream, or not a whole one, makes no file
echo "this is no stream" | statepipe save guest.state
echo "status $?"
echo "the old one" >old.state
head -c 3000 stream | statepipe save old.state
echo "status $?"
cat old.state
(cat stream; echo more) | statepipe save guest.state
status=$?
ls -A
exit $status
