# Writes a C file that holds texts as bytes: cmake -DOUT=file.c "-DFILES=a.moe|b.moe" -P embed.cmake
# An entry is named by the file's stem; mc_embedded_texts ends with an entry without a name.
string(REPLACE "|" ";" files "${FILES}")
set(arrays "")
set(table "")
foreach(file ${files})
  get_filename_component(stem "${file}" NAME_WE)
  file(READ "${file}" hex HEX)
  string(REGEX REPLACE "([0-9a-f][0-9a-f])" "0x\\1," bytes "${hex}")
  string(REGEX REPLACE "((0x..,){24})" "\\1\n" bytes "${bytes}")
  string(APPEND arrays "static const unsigned char text_${stem}[] = {\n${bytes}0};\n")
  string(APPEND table "    {\"${stem}\", text_${stem}, sizeof text_${stem} - 1},\n")
endforeach()
file(WRITE "${OUT}" "#include \"frontend/embedded.h\"\n\n${arrays}\nconst mc_embedded mc_embedded_texts[] = {\n${table}    {0, 0, 0},\n};\n")
