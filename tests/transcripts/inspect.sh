# ends with 0: what is in it, for people and for programs
statepipe save guest.state <stream
statepipe inspect guest.state
statepipe inspect --json guest.state | grep -c '"trailer"'
statepipe inspect stream | grep -e format -e pages
statepipe pipe compress checksum <stream 2>/dev/null >stream.zst
statepipe inspect stream.zst | grep -e format -e pages
