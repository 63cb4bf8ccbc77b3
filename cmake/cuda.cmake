# tersegrad._cuda. Fast mathematics, contraction and flushing of denormals stay off: the bits are those of the CPU.
set(TERSEGRAD_CUDA_ARCHITECTURES "75-real;80-real;86-real;89-real;90-real;100-real;120-real;120-virtual" CACHE STRING
  "CUDA architectures to build for")
set(CMAKE_CUDA_ARCHITECTURES ${TERSEGRAD_CUDA_ARCHITECTURES})
set(CMAKE_CUDA_STANDARD 17)
set(CMAKE_CUDA_STANDARD_REQUIRED ON)
set(CMAKE_CUDA_VISIBILITY_PRESET hidden)
set(CMAKE_CUDA_RUNTIME_LIBRARY Static)
enable_language(CUDA)

add_library(tersegrad_cuda OBJECT csrc/cuda/codec.cu)
set_target_properties(tersegrad_cuda PROPERTIES POSITION_INDEPENDENT_CODE ON)
target_compile_options(tersegrad_cuda PRIVATE -fmad=false -Xfatbin=-compress-all --extended-lambda)
if(TERSEGRAD_WERROR)
  target_compile_options(tersegrad_cuda PRIVATE -Werror=all-warnings)
endif()
if(TERSEGRAD_BUILD_MODULE)
  pybind11_add_module(_cuda MODULE csrc/bindings/cuda.cpp $<TARGET_OBJECTS:tersegrad_cuda>)
  # Not by find_package(CUDAToolkit): that asks for the shared runtime too, under a name that PyPI's wheel does not have.
  find_library(TERSEGRAD_CUDART cudart_static HINTS ${CMAKE_CUDA_IMPLICIT_LINK_DIRECTORIES} REQUIRED)
  target_link_libraries(_cuda PRIVATE tersegrad_native tersegrad_flags ${TERSEGRAD_CUDART} Threads::Threads
    ${CMAKE_DL_LIBS} rt)
  target_link_options(_cuda PRIVATE LINKER:--exclude-libs,ALL)
  install(TARGETS _cuda LIBRARY DESTINATION tersegrad)
endif()
