// A stand-in for the CUDA driver, libcuda.so.1: what pycuda calls, on main memory, with the emulated kernels of
// cuda_emulation.cpp behind cuLaunchKernel. It holds its callers to what a GPU would hold them to: contexts belong to
// threads, parameter buffers must fit the kernel's signature, pointers must lie in device memory, two accesses to a
// buffer from two streams must be ordered by events or a wait, and under capture nothing may allocate, wait or copy.
// A fault is printed, counted and kept for the test. Kernels run when they are launched: it knows order, not time.
#include <stdio.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <map>
#include <mutex>
#include <set>
#include <string>
#include <tuple>
#include <utility>

#include <cuda.h>

#include "cuda_emulation.cpp"

#define API extern "C" __attribute__((visibility("default")))

namespace standin {

using Clock = std::map<const void*, uint64_t>;  // per stream, how many of its operations are known to have ended

static void join(Clock& into, const Clock& other) {
  for (const auto& [stream, time] : other) into[stream] = std::max(into[stream], time);
}

struct Stream {
  Clock clock;
  bool is_blocking = true, is_capturing = false;
};
struct Event {
  Clock clock;
  bool is_capturing = false;
};
struct Module {
  std::string path;
};
struct Context {
  int device;
};
struct Buffer {
  size_t bytes = 0;
  std::pair<const void*, uint64_t> written{nullptr, 0};
  Clock read;
};

struct Driver {
  std::recursive_mutex lock;
  bool is_initialized = false, runs_kernels = true, knows_memory = false;
  std::vector<int> devices;  // PCI bus numbers of those that CUDA_VISIBLE_DEVICES leaves
  std::map<int, Context> primary;
  std::map<int, int> retained;
  std::set<Stream*> streams;
  std::set<Event*> events;
  std::set<Module*> modules;
  std::map<uintptr_t, Buffer> buffers;
  std::set<uintptr_t> allocated;
  Stream null_stream;
  Clock host;
  std::map<std::string, int> counts, shared_limits;
  std::vector<std::string> captured;
  std::string errors;
  ~Driver();
};
static Driver driver;
static thread_local std::vector<Context*> contexts;
static thread_local Stream* in_use = nullptr;  // torch's current stream in this thread, as the harness reports it
static thread_local bool knows_stream = false;

static CUresult fail(CUresult result, const std::string& what) {
  driver.errors += what + "\n";
  fprintf(stderr, "stand-in: %s\n", what.c_str());
  return result;
}
Driver::~Driver() {
  for (const auto& [device, count] : retained) {
    if (count > 0) fail(CUDA_SUCCESS, "the primary context is still retained at exit");
  }
  if (!modules.empty()) fail(CUDA_SUCCESS, "a module is still loaded at exit");
  for (Stream* stream : streams) {  // torch keeps its own, which do not block, for ever
    if (stream->is_blocking) fail(CUDA_SUCCESS, "a stream is left at exit");
  }
}

static bool capturing() {
  return std::any_of(driver.streams.begin(), driver.streams.end(), [](Stream* s) { return s->is_capturing; });
}
static Stream* stream_of(CUstream handle) {
  return handle ? reinterpret_cast<Stream*>(handle) : &driver.null_stream;
}

// What may be called now: CUDA_SUCCESS, or why not.
static CUresult enter(const char* name, bool legal_under_capture = true, bool needs_context = true) {
  ++driver.counts[name];
  if (!driver.is_initialized) return fail(CUDA_ERROR_NOT_INITIALIZED, std::string(name) + " before cuInit");
  if (needs_context && contexts.empty()) {
    return fail(CUDA_ERROR_INVALID_CONTEXT, std::string(name) + " in a thread without a context");
  }
  if (!legal_under_capture && capturing()) {
    return fail(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, std::string(name) + " under capture");
  }
  return CUDA_SUCCESS;
}
#define ENTER(...) \
  std::lock_guard<std::recursive_mutex> guard(driver.lock); \
  if (CUresult result = enter(__func__ __VA_OPT__(, ) __VA_ARGS__)) return result

// Begins an operation on a stream: the legacy stream 0 waits for all blocking ones, and they for it.
static void begin(Stream* stream) {
  join(stream->clock, driver.host);
  if (stream == &driver.null_stream) {
    for (Stream* other : driver.streams) {
      if (other->is_blocking) join(stream->clock, other->clock);
    }
  } else if (stream->is_blocking) {
    join(stream->clock, driver.null_stream.clock);
  }
  ++stream->clock[stream];
}

static Buffer* buffer_at(uintptr_t pointer) {
  auto after = driver.buffers.upper_bound(pointer);
  if (after == driver.buffers.begin()) return nullptr;
  auto& [start, buffer] = *std::prev(after);
  return pointer < start + std::max<size_t>(buffer.bytes, 1) ? &buffer : nullptr;
}

static void access(Stream* stream, uintptr_t pointer, bool writes, const std::string& who) {
  if (!pointer) return;
  Buffer* buffer = buffer_at(pointer);
  if (!buffer) {
    if (driver.knows_memory) fail(CUDA_SUCCESS, who + " got a pointer to memory that is not the device's");
    buffer = &driver.buffers[pointer];
  }
  auto known = [&](const void* other, uint64_t time) { return other == stream || stream->clock[other] >= time; };
  bool ordered = known(buffer->written.first, buffer->written.second) || !buffer->written.first;
  if (writes) {
    for (const auto& [other, time] : buffer->read) ordered = ordered && known(other, time);
  }
  if (!ordered) fail(CUDA_SUCCESS, who + " reaches a buffer that another stream may still use");
  if (writes) {
    buffer->written = {stream, stream->clock[stream]};
    buffer->read.clear();
  } else {
    buffer->read[stream] = stream->clock[stream];
  }
}

// Takes a kernel's arguments out of pycuda's buffer, each at its own alignment, as the driver does.
struct Reader {
  const char* bytes;
  size_t at = 0;
  template <class T> T next() {
    at = (at + alignof(T) - 1) / alignof(T) * alignof(T);
    T value;
    memcpy(&value, bytes + at, sizeof value);
    at += sizeof value;
    return value;
  }
};
template <class... A> constexpr size_t size_of(void (*)(A...)) {
  size_t at = 0;
  ((at = (at + alignof(A) - 1) / alignof(A) * alignof(A) + sizeof(A)), ...);
  return at;
}
template <class T> void note(Stream* stream, T value, const char* name) {
  if constexpr (std::is_pointer_v<T>) {
    access(stream, reinterpret_cast<uintptr_t>(value), !std::is_const_v<std::remove_pointer_t<T>>, name);
  }
}
template <class... A>
CUresult run(const char* name, void (*kernel)(A...), Stream* stream, int blocks, int blocks_y, int threads,
             const char* bytes, size_t size) {
  if (size != size_of(kernel)) {
    return fail(CUDA_ERROR_INVALID_VALUE, std::string(name) + " got " + std::to_string(size) + " bytes of parameters, takes " +
                                              std::to_string(size_of(kernel)));
  }
  Reader reader{bytes};
  const std::tuple<A...> arguments{reader.next<A>()...};  // braces: in order
  std::apply([&](A... values) { (note(stream, values, name), ...); }, arguments);
  if (driver.runs_kernels) launch(blocks, blocks_y, threads, [=] { std::apply(kernel, arguments); });
  return CUDA_SUCCESS;
}

#define NAME(name) #name,
static const char* const kernel_names[] = {KERNELS(NAME)};

}  // namespace standin

using namespace standin;

// For the test.
API const char* standin_errors() { return driver.errors.c_str(); }
API void standin_forget_errors() { driver.errors.clear(); }
API int standin_count(const char* name) { return driver.counts[name]; }
API int standin_captured() { return static_cast<int>(driver.captured.size()); }
API void standin_run_kernels(int yes) { driver.runs_kernels = yes; }
// From now on, a pointer that no operation of torch's has reported before is a fault.
API void standin_knows_memory(int yes) {
  std::lock_guard<std::recursive_mutex> guard(driver.lock);
  driver.knows_memory = yes;
  driver.buffers.clear();  // what is freed while nobody tells is soon another's
}
API void standin_use(CUstream stream, int known) {
  in_use = stream_of(stream);
  knows_stream = known;
}
// An operation of torch on a stream: the device memory that it reads or writes.
API void standin_operation(CUstream stream) {
  std::lock_guard<std::recursive_mutex> guard(driver.lock);
  begin(stream_of(stream));
}
API void standin_access(CUstream stream, uintptr_t pointer, size_t bytes, int writes, const char* who) {
  std::lock_guard<std::recursive_mutex> guard(driver.lock);
  Buffer& buffer = driver.buffers[pointer];
  buffer.bytes = bytes;
  for (auto next = driver.buffers.upper_bound(pointer); next != driver.buffers.end() && next->first < pointer + bytes;) {
    next = driver.buffers.erase(next);  // freed since, and its memory another's
  }
  access(stream_of(stream), pointer, writes, who);
}
API int standin_refuses(const char* what) {
  return capturing() ? fail(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, std::string(what) + " under capture") : 0;
}

// The driver.
API CUresult cuInit(unsigned) {
  std::lock_guard<std::recursive_mutex> guard(driver.lock);
  if (driver.is_initialized) return CUDA_SUCCESS;
  const char *number = getenv("STANDIN_GPUS"), *visible = getenv("CUDA_VISIBLE_DEVICES");
  const int present = number ? atoi(number) : 1;
  for (int n = 0; n < present; ++n) {
    if (!visible || ("," + std::string(visible) + ",").find("," + std::to_string(n) + ",") != std::string::npos) {
      driver.devices.push_back(n);
    }
  }
  driver.is_initialized = true;
  return driver.devices.empty() ? CUDA_ERROR_NO_DEVICE : CUDA_SUCCESS;
}
API CUresult cuDriverGetVersion(int* version) { return *version = CUDA_VERSION, CUDA_SUCCESS; }
API CUresult cuGetErrorString(CUresult, const char** text) { return *text = "see what the stand-in printed", CUDA_SUCCESS; }
API CUresult cuDeviceGetCount(int* count) {
  ENTER(true, false);
  return *count = static_cast<int>(driver.devices.size()), CUDA_SUCCESS;
}
API CUresult cuDeviceGet(CUdevice* device, int ordinal) {
  ENTER(true, false);
  if (ordinal < 0 || ordinal >= static_cast<int>(driver.devices.size())) return CUDA_ERROR_INVALID_DEVICE;
  return *device = ordinal, CUDA_SUCCESS;
}
API CUresult cuDeviceGetName(char* name, int size, CUdevice) {
  return snprintf(name, size, "stand-in"), CUDA_SUCCESS;
}
API CUresult cuDeviceGetPCIBusId(char* id, int size, CUdevice device) {
  return snprintf(id, size, "0000:%02x:00.0", driver.devices[device]), CUDA_SUCCESS;
}
API CUresult cuDeviceComputeCapability(int* major, int* minor, CUdevice) {
  return *major = 9, *minor = 0, CUDA_SUCCESS;
}
API CUresult cuDeviceGetAttribute(int* value, CUdevice_attribute attribute, CUdevice) {
  switch (attribute) {
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR: *value = 9; break;
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR: *value = 0; break;
    case CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK: *value = 1024; break;
    case CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_MULTIPROCESSOR: *value = 2048; break;
    case CU_DEVICE_ATTRIBUTE_MAX_BLOCKS_PER_MULTIPROCESSOR: *value = 32; break;
    case CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT: *value = 132; break;
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN: *value = 232448; break;
    default: return fail(CUDA_ERROR_INVALID_VALUE, "an attribute that the stand-in does not know");
  }
  return CUDA_SUCCESS;
}
API CUresult cuDevicePrimaryCtxRetain(CUcontext* context, CUdevice device) {
  ENTER(true, false);
  ++driver.retained[device];
  driver.primary[device].device = device;
  return *context = reinterpret_cast<CUcontext>(&driver.primary[device]), CUDA_SUCCESS;
}
API CUresult cuDevicePrimaryCtxRelease(CUdevice device) {
  ENTER(false, false);
  return driver.retained[device]-- > 0 ? CUDA_SUCCESS : fail(CUDA_ERROR_INVALID_CONTEXT, "released too often");
}
API CUresult cuCtxPushCurrent(CUcontext context) {
  return contexts.push_back(reinterpret_cast<Context*>(context)), CUDA_SUCCESS;
}
API CUresult cuCtxPopCurrent(CUcontext* context) {
  ENTER();
  *context = reinterpret_cast<CUcontext>(contexts.back());
  return contexts.pop_back(), CUDA_SUCCESS;
}
API CUresult cuCtxSetCurrent(CUcontext context) {
  if (!contexts.empty()) contexts.pop_back();
  if (context) contexts.push_back(reinterpret_cast<Context*>(context));
  return CUDA_SUCCESS;
}
API CUresult cuCtxGetCurrent(CUcontext* context) {
  return *context = reinterpret_cast<CUcontext>(contexts.empty() ? nullptr : contexts.back()), CUDA_SUCCESS;
}
API CUresult cuCtxGetDevice(CUdevice* device) {
  ENTER();
  return *device = contexts.back()->device, CUDA_SUCCESS;
}
API CUresult cuCtxDetach(CUcontext) { return fail(CUDA_ERROR_INVALID_CONTEXT, "cuCtxDetach of a primary context"); }
API CUresult cuCtxSynchronize() {
  ENTER(false);
  for (Stream* stream : driver.streams) join(driver.host, stream->clock);
  return join(driver.host, driver.null_stream.clock), CUDA_SUCCESS;
}

API CUresult cuModuleLoad(CUmodule* module, const char* path) {
  ENTER(false);
  std::ifstream file(path, std::ios::binary);
  unsigned magic = 0;
  file.read(reinterpret_cast<char*>(&magic), sizeof magic);
  if (magic != 0xBA55ED50u) return fail(CUDA_ERROR_INVALID_IMAGE, std::string(path) + " is not a fatbin");
  Module* loaded = new Module{path};
  driver.modules.insert(loaded);
  return *module = reinterpret_cast<CUmodule>(loaded), CUDA_SUCCESS;
}
API CUresult cuModuleUnload(CUmodule module) {
  ENTER(false);
  driver.modules.erase(reinterpret_cast<Module*>(module));
  return CUDA_SUCCESS;
}
API CUresult cuModuleGetFunction(CUfunction* function, CUmodule, const char* name) {
  ENTER();
  for (const char* const& known : kernel_names) {
    if (!strcmp(known, name)) return *function = reinterpret_cast<CUfunction>(const_cast<char**>(&known)), CUDA_SUCCESS;
  }
  return CUDA_ERROR_NOT_FOUND;
}
static const char* name_of(CUfunction function) { return *reinterpret_cast<const char* const*>(function); }
API CUresult cuFuncSetBlockShape(CUfunction, int, int, int) { return CUDA_SUCCESS; }
API CUresult cuFuncSetAttribute(CUfunction function, CUfunction_attribute attribute, int value) {
  ENTER();
  if (attribute != CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES || value > 232448) {
    return fail(CUDA_ERROR_INVALID_VALUE, "a function attribute out of range");
  }
  driver.shared_limits[name_of(function)] = value;
  return CUDA_SUCCESS;
}

API CUresult cuLaunchKernel(CUfunction function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                            unsigned block_y, unsigned block_z, unsigned shared, CUstream handle, void** parameters,
                            void** extra) {
  ENTER();
  const std::string name = name_of(function);
  ++driver.counts[name];
  Stream* stream = stream_of(handle);
  if (handle && !driver.streams.count(stream)) return fail(CUDA_ERROR_INVALID_HANDLE, name + " on a stream that is gone");
  if (capturing()) {
    if (!stream->is_capturing) return fail(CUDA_ERROR_STREAM_CAPTURE_ISOLATION, name + " on a foreign stream under capture");
    driver.captured.push_back(name);
  }
  const int limit = std::max(48 * 1024, driver.shared_limits[name]);
  const unsigned threads = block_x * block_y * block_z, blocks = grid_x * grid_y * grid_z;
  if (threads == 0 || threads > 1024 || blocks == 0 || static_cast<int>(shared) > limit || shared > sizeof memory) {
    return fail(CUDA_ERROR_INVALID_VALUE, name + " launched with blocks that a GPU refuses");
  }
  if (parameters || !extra || extra[0] != CU_LAUNCH_PARAM_BUFFER_POINTER || extra[2] != CU_LAUNCH_PARAM_BUFFER_SIZE) {
    return fail(CUDA_ERROR_INVALID_VALUE, name + " launched without a parameter buffer");
  }
  begin(stream);
  if (knows_stream && stream->clock[in_use] < in_use->clock[in_use]) {
    fail(CUDA_SUCCESS, name + " launched on another stream than the one in use, and not after it");
  }
  const char* bytes = static_cast<const char*>(extra[1]);
  const size_t size = *static_cast<size_t*>(extra[3]);
#define RUN(kernel) \
  if (name == #kernel) return run(#kernel, kernel, stream, grid_x, grid_y, threads, bytes, size);
  KERNELS(RUN)
  return CUDA_ERROR_NOT_FOUND;
}

API CUresult cuStreamCreate(CUstream* stream, unsigned flags) {
  ENTER(false);
  Stream* made = new Stream;
  made->is_blocking = !(flags & CU_STREAM_NON_BLOCKING);
  driver.streams.insert(made);
  return *stream = reinterpret_cast<CUstream>(made), CUDA_SUCCESS;
}
API CUresult cuStreamDestroy(CUstream stream) {
  ENTER(false);
  return driver.streams.erase(stream_of(stream)) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
}
API CUresult cuStreamSynchronize(CUstream stream) {
  ENTER(false);
  return join(driver.host, stream_of(stream)->clock), CUDA_SUCCESS;
}
API CUresult cuStreamQuery(CUstream) {
  ENTER(false);
  return CUDA_SUCCESS;
}
API CUresult cuStreamWaitEvent(CUstream handle, CUevent handle_of_event, unsigned) {
  ENTER();
  Stream* stream = stream_of(handle);
  Event* event = reinterpret_cast<Event*>(handle_of_event);
  stream->is_capturing = stream->is_capturing || event->is_capturing;  // a fork, or a join
  return join(stream->clock, event->clock), CUDA_SUCCESS;
}
API CUresult cuEventCreate(CUevent* event, unsigned) {
  ENTER();
  Event* made = new Event;
  driver.events.insert(made);
  return *event = reinterpret_cast<CUevent>(made), CUDA_SUCCESS;
}
API CUresult cuEventDestroy(CUevent event) {
  ENTER();
  driver.events.erase(reinterpret_cast<Event*>(event));
  return CUDA_SUCCESS;
}
API CUresult cuEventRecord(CUevent handle, CUstream handle_of_stream) {
  ENTER();
  Stream* stream = stream_of(handle_of_stream);
  begin(stream);
  *reinterpret_cast<Event*>(handle) = {stream->clock, stream->is_capturing};
  return CUDA_SUCCESS;
}
API CUresult cuEventSynchronize(CUevent event) {
  ENTER(false);
  return join(driver.host, reinterpret_cast<Event*>(event)->clock), CUDA_SUCCESS;
}

// A capture: what it holds runs at once, too, since the rest of an iteration, torch's on the CPU, does.
API CUresult cuStreamBeginCapture(CUstream stream, CUstreamCaptureMode) {
  ENTER(false);
  if (!stream) return fail(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, "capture of the legacy stream");
  driver.captured.clear();
  return stream_of(stream)->is_capturing = true, CUDA_SUCCESS;
}
API CUresult cuStreamEndCapture(CUstream, CUgraph* graph) {
  ENTER();
  for (Stream* stream : driver.streams) stream->is_capturing = false;
  return *graph = nullptr, CUDA_SUCCESS;
}
API CUresult cuStreamIsCapturing(CUstream stream, CUstreamCaptureStatus* status) {
  ENTER();
  *status = stream_of(stream)->is_capturing ? CU_STREAM_CAPTURE_STATUS_ACTIVE : CU_STREAM_CAPTURE_STATUS_NONE;
  return CUDA_SUCCESS;
}

// Memory of the driver's own, and copies: WarpDrive's way, which ours does without.
API CUresult cuMemAlloc(CUdeviceptr* pointer, size_t bytes) {
  ENTER(false);
  *pointer = reinterpret_cast<CUdeviceptr>(malloc(bytes));
  driver.buffers[*pointer] = Buffer{bytes};
  driver.allocated.insert(*pointer);
  return CUDA_SUCCESS;
}
API CUresult cuMemFree(CUdeviceptr pointer) {
  ENTER(false);
  if (!driver.allocated.erase(pointer)) return CUDA_ERROR_INVALID_VALUE;
  driver.buffers.erase(pointer);
  return free(reinterpret_cast<void*>(pointer)), CUDA_SUCCESS;
}
static CUresult copy(Stream* stream, CUdeviceptr device, bool to_device, void* to, const void* from, size_t bytes) {
  begin(stream);
  access(stream, device, to_device, "a copy");
  return memcpy(to, from, bytes), CUDA_SUCCESS;
}
API CUresult cuMemcpyHtoD(CUdeviceptr to, const void* from, size_t bytes) {
  ENTER(false);
  return copy(&driver.null_stream, to, true, reinterpret_cast<void*>(to), from, bytes);
}
API CUresult cuMemcpyDtoH(void* to, CUdeviceptr from, size_t bytes) {
  ENTER(false);
  const CUresult result = copy(&driver.null_stream, from, false, to, reinterpret_cast<void*>(from), bytes);
  return join(driver.host, driver.null_stream.clock), result;
}
API CUresult cuMemsetD8(CUdeviceptr to, unsigned char value, size_t bytes) {
  ENTER(false);
  access(&driver.null_stream, to, true, "cuMemsetD8");
  return memset(reinterpret_cast<void*>(to), value, bytes), CUDA_SUCCESS;
}

// All that pycuda links and nothing here calls: standin.py makes a function for each from the symbols of its library.
API int standin_lacks(const char* name) { return fail(CUDA_ERROR_NOT_SUPPORTED, std::string(name) + " is not in the stand-in"); }
