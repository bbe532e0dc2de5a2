# libmoec.so (compiler and runtime), libmoec_rt.a (the runtime alone), and what `cmake --install` puts where.
include(CMakePackageConfigHelpers)

file(WRITE ${CMAKE_BINARY_DIR}/embed/libmoec.c "/* libmoec.so is made of the archives. */\ntypedef int moec_nothing;\n")
add_library(libmoec SHARED ${CMAKE_BINARY_DIR}/embed/libmoec.c)
set_target_properties(libmoec PROPERTIES OUTPUT_NAME moec VERSION ${PROJECT_VERSION} SOVERSION ${PROJECT_VERSION_MAJOR}
                                         LINK_DEPENDS ${PROJECT_SOURCE_DIR}/cmake/exports.map)
target_link_options(libmoec PRIVATE -Wl,--version-script=${PROJECT_SOURCE_DIR}/cmake/exports.map -Wl,-Bsymbolic)
target_link_libraries(libmoec PRIVATE -Wl,--whole-archive $<TARGET_FILE:moec_driver> $<TARGET_FILE:moec_rt>
                                      $<TARGET_FILE:moec_base> -Wl,--no-whole-archive moec_driver)

set(MOEC_RT_ARCHIVE ${CMAKE_BINARY_DIR}/embed/libmoec_rt.a)
add_custom_command(OUTPUT ${MOEC_RT_ARCHIVE}
  COMMAND ${CMAKE_COMMAND} -E rm -f ${MOEC_RT_ARCHIVE}
  COMMAND ${CMAKE_AR} rcsD ${MOEC_RT_ARCHIVE} ${MOEC_RT_OBJECT}
  DEPENDS ${MOEC_RT_OBJECT} VERBATIM)
add_custom_target(moec_rt_archive ALL DEPENDS ${MOEC_RT_ARCHIVE})

configure_file(${PROJECT_SOURCE_DIR}/cmake/moec.pc.in ${CMAKE_BINARY_DIR}/moec.pc @ONLY)
configure_package_config_file(${PROJECT_SOURCE_DIR}/cmake/moecConfig.cmake.in ${CMAKE_BINARY_DIR}/moecConfig.cmake
  INSTALL_DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/moec
  PATH_VARS CMAKE_INSTALL_BINDIR CMAKE_INSTALL_LIBDIR CMAKE_INSTALL_INCLUDEDIR)
write_basic_package_version_file(${CMAKE_BINARY_DIR}/moecConfigVersion.cmake COMPATIBILITY SameMinorVersion)

install(TARGETS moec RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
install(TARGETS libmoec LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR})
install(FILES ${MOEC_RT_ARCHIVE} DESTINATION ${CMAKE_INSTALL_LIBDIR})
install(DIRECTORY include/moec DESTINATION ${CMAKE_INSTALL_INCLUDEDIR} FILES_MATCHING PATTERN "*.h")
install(FILES ${CMAKE_BINARY_DIR}/moec.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)
install(FILES ${CMAKE_BINARY_DIR}/moecConfig.cmake ${CMAKE_BINARY_DIR}/moecConfigVersion.cmake
        DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/moec)
install(FILES docs/moec.1 DESTINATION ${CMAKE_INSTALL_MANDIR}/man1)
install(FILES docs/moec.bash DESTINATION ${CMAKE_INSTALL_DATADIR}/bash-completion/completions RENAME moec)
