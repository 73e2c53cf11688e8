# ends with 0: the line is that of sha256sum
statepipe checksum --to sum <stream >same
sha256sum -c sum <stream
statepipe checksum <stream >same
statepipe pipe compress checksum:blake3,to=packed.b3,,sum <stream >packed
ls
statepipe verify --algorithm blake3 --from packed.b3,sum <packed | statepipe decompress | cmp - stream && echo same
