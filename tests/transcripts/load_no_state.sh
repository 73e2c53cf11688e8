# ends with 1: nothing of what is no state goes out
echo "this is no state" >guest.state
statepipe load guest.state >out
echo "status $?"
: >empty.state
statepipe load empty.state >out
echo "status $?"
stat -c '%s %n' out
statepipe load none.state >out
