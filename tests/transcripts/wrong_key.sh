# ends with 4: nothing comes out for whoever has another key, and a key is not overwritten
statepipe keygen -o mine 2>/dev/null
statepipe keygen -o mine
statepipe keygen -o other 2>/dev/null
statepipe encrypt -r "$(statepipe keygen -y mine)" <stream >stream.age
statepipe decrypt <stream.age
statepipe decrypt -i other <stream.age
