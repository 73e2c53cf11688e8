# ends with 0: a state file is the stream, and any zstd gives it back
statepipe save guest.state <stream
stat -c '%a %n' guest.state
zstd -dqc guest.state | cmp - stream && echo same for zstd
statepipe load guest.state | cmp - stream && echo same
statepipe verify-state guest.state
