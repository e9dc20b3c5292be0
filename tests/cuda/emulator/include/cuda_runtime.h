#pragma once
#include "emulator/runtime.h"
