// The C interface of libavis_cuda.so, emulated; and how tests steer the emulator.

#include "library.inl"

// Launches run their threads in another order for each seed; 0: ascending.
AV_API void emu_seed(unsigned seed) { emu::settings().seed = seed; }
AV_API void emu_threads(unsigned threads) { emu::settings().threads = threads; }
// As a CUDA graph: from emu_record on launches are only remembered, arguments by value, until emu_replay runs them, any
// number of times.
AV_API void emu_record(void) {
  emu::settings().graph.clear();
  emu::settings().recording = true;
}
AV_API int emu_replay(void) {
  emu::settings().recording = false;
  return emu::guarded([] {
    for (const auto& launch : emu::settings().graph) launch();
  });
}
// The names of all kernels that ran so far, one a line.
AV_API const char* emu_launched(void) {
  static std::string names;
  names.clear();
  for (const std::string& name : emu::settings().launched) names += name + "\n";
  return names.c_str();
}
