/* moec/moec.h: everything. Programs that only run ahead-of-time artefacts include moec/runtime.h instead. */
#ifndef MOEC_MOEC_H
#define MOEC_MOEC_H

#include "moec/base.h"
#include "moec/compiler.h"
#include "moec/comm.h"
#include "moec/gpu.h"
#include "moec/runtime.h"
#include "moec/train.h"

#endif
