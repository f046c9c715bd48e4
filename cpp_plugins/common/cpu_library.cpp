// What every library says about itself, for the CPU library.
#include "common/portable.h"

DEPLOYKIT_API int32_t deploykit_abi() { return deploykit::abi_number; }

DEPLOYKIT_API const char* deploykit_built_with() { return DEPLOYKIT_BUILT_WITH; }
