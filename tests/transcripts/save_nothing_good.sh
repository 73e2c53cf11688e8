# ends with 3: what is no migration stream, or not a whole one, makes no file, and no state takes the place of another file
echo "this is no stream" | statepipe save guest.state
echo "status $?"
printf "QEVM, the old one\n" >old.state
head -c 3000 stream | statepipe save old.state
echo "status $?"
cat old.state
echo "what I wrote" >notes
statepipe save notes <stream
echo "status $?"
(cat stream; echo more) | statepipe save guest.state
status=$?
ls -A
exit $status
