// The C interface. Included by library.cu, and by the emulator.

#include "launch_msda.h"
#include "launch_range.h"

#define AV_API extern "C" __attribute__((visibility("default")))
#if !defined(AVIS_CUDA_ARCHS)
#define AVIS_CUDA_ARCHS "emulated"
#endif

AV_API int av_abi(void) { return AV_ABI; }
AV_API const char* av_archs(void) { return AVIS_CUDA_ARCHS; }
AV_API const char* av_error(int code) {
  if (code == avis::gpu::kNoKernel) return "no kernel serves these arguments";
#if defined(__CUDACC__)
  return cudaGetErrorString(static_cast<cudaError_t>(code));
#else
  return emu::last_error();
#endif
}
AV_API void av_set_launcher(AvLauncher launcher) { avis::gpu::launcher = launcher; }

AV_API int av_msda_forward(const AvMsda* args, void* stream) { return avis::gpu::launch_msda_forward(*args, stream); }
AV_API int av_msda_backward(const AvMsda* args, void* stream) { return avis::gpu::launch_msda_backward(*args, stream); }

AV_API AvPlan* av_plan_new(const AvGroups* groups, const AvRange* args, int backward) {
  if (!avis::gpu::fits(*groups, args->queries, args->keys)) return nullptr;
  return new AvPlan(avis::gpu::make_plan(*groups, *args, backward != 0));
}
AV_API int64_t av_plan_ints(const AvPlan* plan) { return static_cast<int64_t>(plan->ints.size()); }
AV_API void av_plan_delete(AvPlan* plan) { delete plan; }
AV_API int av_range_forward(const AvRange* args, const AvPlan* plan, int32_t* room, void* stream) {
  return avis::gpu::launch_range_forward(*args, *plan, room, stream);
}
AV_API int av_range_backward(const AvRange* args, const AvPlan* plan, int32_t* room, void* stream) {
  return avis::gpu::launch_range_backward(*args, *plan, room, stream);
}

AV_API int av_paged_forward(const AvRange* args, const AvPages* pages, void* stream) {
  return avis::gpu::launch_paged_forward(*args, *pages, stream);
}
AV_API int av_paged_backward(const AvRange* args, const AvPages* pages, void* stream) {
  return avis::gpu::launch_paged_backward(*args, *pages, stream);
}
AV_API int av_cache_write(const AvCacheWrite* args, void* stream) {
  return avis::gpu::launch_cache_write(*args, stream);
}
