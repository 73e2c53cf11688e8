# ends with 3: a state that was cut, or in which one bit is wrong, is refused
statepipe save guest.state <stream
size=$(stat -c %s guest.state)
head -c $((size - 1)) guest.state >cut.state
statepipe load cut.state >out
echo "status $?, $(stat -c %s out) bytes out"
cp guest.state flipped.state
printf '\377' | dd of=flipped.state bs=1 seek=$((size / 2)) conv=notrunc status=none
statepipe verify-state flipped.state
echo "status $?"
statepipe load flipped.state >out
