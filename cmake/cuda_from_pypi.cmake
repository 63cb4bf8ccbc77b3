# nvcc from PyPI's wheels (pyproject.toml lists them): its profile names a folder lib64, the wheel has lib.
execute_process(COMMAND "${Python_EXECUTABLE}" -c
  "import nvidia, os; print(next(p + '/cu13' for p in nvidia.__path__ if os.path.exists(p + '/cu13/bin/nvcc')))"
  OUTPUT_VARIABLE root OUTPUT_STRIP_TRAILING_WHITESPACE RESULT_VARIABLE failed)
if(failed)
  message(FATAL_ERROR "TERSEGRAD_CUDA_PYPI: the package nvidia-cuda-nvcc of CUDA 13 is not installed")
endif()
set(CMAKE_CUDA_COMPILER "${root}/bin/nvcc")
set(ENV{NVCC_APPEND_FLAGS} "-L${root}/lib")
