/* First in a model's image: describes the network that `headtail export` generated (MODEL and MODEL_BIG: its prefix). */
#include "model.h"

#define JOIN_(a, b) a##b
#define JOIN(a, b) JOIN_(a, b)
#define QUOTE_(a) #a
#define QUOTE(a) QUOTE_(a)
#include QUOTE(MODEL.h)

extern const model model_entry;
__attribute__((section(".entry"), used)) const model model_entry = {
    MODEL_MAGIC,
    JOIN(MODEL_BIG, _ARENA_BYTES),
    JOIN(MODEL_BIG, _INPUT_OFFSET),
    JOIN(MODEL_BIG, _INPUT_BYTES),
    JOIN(MODEL_BIG, _OUTPUT_OFFSET),
    JOIN(MODEL_BIG, _OUTPUT_BYTES),
    JOIN(MODEL, _run)};
