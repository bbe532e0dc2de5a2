// base: what every kernel file begins with.
#pragma once
