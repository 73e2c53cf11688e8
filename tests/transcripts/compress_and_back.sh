# ends with 0: what goes in comes out, through us and through zstd
statepipe compress <stream >packed
statepipe decompress <packed | cmp - stream && echo same
zstd -dc packed | cmp - stream && echo same for zstd
zstd -c stream 2>/dev/null | statepipe decompress | cmp - stream && echo same from zstd
gzip -c stream | statepipe decompress | cmp - stream && echo same from gzip
