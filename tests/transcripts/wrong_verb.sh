# ends with 2: words that are none of ours
statepipe compres <stream
statepipe pipe compress zip <stream
statepipe compress --levle 3 <stream
statepipe compress lzma <stream
statepipe progress --size big <stream
