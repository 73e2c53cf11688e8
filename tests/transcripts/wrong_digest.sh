# ends with 3: verify lets everything go but the end
sum=$(sha256sum <stream)
statepipe verify "$sum" <stream | cmp - stream && echo it agrees
(cat stream; echo more) | statepipe verify "$sum" >out
