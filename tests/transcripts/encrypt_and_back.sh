# ends with 0: a stream is encrypted for a key and comes back
statepipe keygen -o vm.key
statepipe pipe compress "encrypt:$(statepipe keygen -y vm.key)" <stream >stream.age
statepipe pipe decrypt:i=vm.key decompress <stream.age | cmp - stream && echo same
statepipe encrypt -a -r "$(statepipe keygen -y vm.key)" <stream >stream.txt
head -n 1 stream.txt
stat -c %a vm.key
