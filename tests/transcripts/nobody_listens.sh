# ends with 1: a reader that leaves is no error to talk about, a full disk is
yes | head -c 20000000 | (statepipe checksum; echo "status $?" >status) | head -c 1 >/dev/null
cat status
statepipe compress <stream >/dev/full
