// Of LiteRT 2.3: the Python package has no headers. Functions return 0, or what went wrong.

#include <stddef.h>
#include <stdint.h>

typedef struct { uint32_t words[18]; } LiteRtRankedTensorType;

int LiteRtCreateEnvironment(int count, const void *options, void **environment);
void LiteRtDestroyEnvironment(void *environment);

int LiteRtCreateOptions(void **options);
void LiteRtDestroyOptions(void *options);
int LiteRtSetOptionsHardwareAccelerators(void *options, int accelerators);
int LiteRtCreateOpaqueOptions(const char *name, void *payload, void (*destroy)(void *), void **opaque);
int LiteRtAddOpaqueOptions(void *options, void *opaque);

int LiteRtCreateModelFromFile(void *environment, const char *path, void **model);
void LiteRtDestroyModel(void *model);
int LiteRtGetModelSignature(void *model, size_t index, void **signature);
int LiteRtGetNumSignatureInputs(void *signature, size_t *count);
int LiteRtGetNumSignatureOutputs(void *signature, size_t *count);
int LiteRtGetSignatureOutputName(void *signature, size_t index, const char **name);
int LiteRtGetSignatureInputTensorByIndex(void *signature, size_t index, void **tensor);
int LiteRtGetSignatureOutputTensorByIndex(void *signature, size_t index, void **tensor);
int LiteRtGetRankedTensorType(void *tensor, LiteRtRankedTensorType *type);

int LiteRtCreateCompiledModel(void *environment, void *model, void *options, void **compiled);
void LiteRtDestroyCompiledModel(void *compiled);
int LiteRtGetCompiledModelInputBufferRequirements(void *compiled, size_t signature, size_t index, void **requirements);
int LiteRtGetCompiledModelOutputBufferRequirements(void *compiled, size_t signature, size_t index, void **requirements);
int LiteRtGetTensorBufferRequirementsBufferSize(void *requirements, size_t *size);
int LiteRtRunCompiledModel(
    void *compiled, size_t signature, size_t input_count, void **inputs, size_t output_count, void **outputs);

int LiteRtCreateManagedTensorBuffer(
    void *environment, int buffer_type, const LiteRtRankedTensorType *type, size_t size, void **buffer);
void LiteRtDestroyTensorBuffer(void *buffer);
int LiteRtGetTensorBufferPackedSize(void *buffer, size_t *size);
int LiteRtLockTensorBuffer(void *buffer, void **address, int mode);
int LiteRtUnlockTensorBuffer(void *buffer);
