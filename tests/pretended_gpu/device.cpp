// A CUDA device for a torch that is built without CUDA: its memory and its arithmetic are the CPU's.
//
// Each kernel that is asked of the device is run by the CPU on the same memory. What is tested so is
// everything around the kernels: that all tensors of an operation, and its generator, are of one
// device; which code is chosen on a GPU; and how much memory its tensors take.

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/GeneratorImpl.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/extension.h>
#include <torch/library.h>

#include <algorithm>
#include <atomic>
#include <set>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

namespace {

using at::Tensor;
using c10::Device;
using c10::DeviceIndex;
using c10::DispatchKey;
using c10::DispatchKeySet;
using c10::IValue;
using c10::Storage;

const Device gpu(c10::kCUDA, 0);
const Device cpu(c10::kCPU);

// ---------------------------------------------------------------------------- random numbers

struct GpuGenerator : c10::GeneratorImpl {
  explicit GpuGenerator(at::Generator on_cpu)
      : c10::GeneratorImpl(gpu, DispatchKeySet(DispatchKey::CUDA)), on_cpu(std::move(on_cpu)) {}

  void set_current_seed(uint64_t seed) override { on_cpu.set_current_seed(seed); }
  uint64_t current_seed() const override { return on_cpu.current_seed(); }
  uint64_t seed() override { return on_cpu.seed(); }
  void set_offset(uint64_t) override {}
  uint64_t get_offset() const override { return 0; }
  void set_state(const c10::TensorImpl& state) override {
    on_cpu.unsafeGetGeneratorImpl()->set_state(state);
  }
  c10::intrusive_ptr<c10::TensorImpl> get_state() const override {
    return on_cpu.unsafeGetGeneratorImpl()->get_state();
  }
  GpuGenerator* clone_impl() const override { return new GpuGenerator(on_cpu.clone()); }

  at::Generator on_cpu;
};

at::Generator& default_generator() {
  static auto generator = at::make_generator<GpuGenerator>(
      at::detail::createCPUGenerator(c10::default_rng_seed_val));
  return generator;
}

at::Generator of_cpu(const at::Generator& generator) {
  return static_cast<GpuGenerator*>(generator.unsafeGetGeneratorImpl())->on_cpu;
}

// -------------------------------------------------------------------------------- the device

struct Guard final : c10::impl::DeviceGuardImplInterface {
  using Stream = c10::Stream;

  c10::DeviceType type() const override { return c10::kCUDA; }
  Device exchangeDevice(Device) const override { return gpu; }
  Device getDevice() const override { return gpu; }
  void setDevice(Device) const override {}
  void uncheckedSetDevice(Device) const noexcept override {}
  Stream getStream(Device) const override { return Stream(Stream::DEFAULT, gpu); }
  Stream getDefaultStream(Device) const override { return Stream(Stream::DEFAULT, gpu); }
  Stream exchangeStream(Stream stream) const override { return stream; }
  DeviceIndex deviceCount() const noexcept override { return 1; }
};

}  // namespace

// Torch's own, of which a build without CUDA knows no device.
namespace at::accelerator {
std::optional<c10::DeviceType> getAccelerator(bool) { return c10::kCUDA; }
bool isAccelerator(c10::DeviceType type) { return type == c10::kCUDA; }
DeviceIndex deviceCount() { return 1; }
}  // namespace at::accelerator

namespace at::detail {
C10_REGISTER_GUARD_IMPL(CUDA, Guard)
}

namespace at {
struct CUDAHooks : CUDAHooksInterface {
  explicit CUDAHooks(CUDAHooksArgs) {}
  void init() const override {}
  bool hasCUDA() const override { return true; }
  bool hasPrimaryContext(DeviceIndex) const override { return true; }
  DeviceIndex deviceCount() const override { return 1; }
  DeviceIndex current_device() const override { return 0; }
  DeviceIndex getCurrentDevice() const override { return 0; }
  int getNumGPUs() const override { return 1; }
  void deviceSynchronize(DeviceIndex) const override {}
  const Generator& getDefaultGenerator(DeviceIndex) const override { return default_generator(); }
  Generator getNewGenerator(DeviceIndex) const override {
    return make_generator<GpuGenerator>(detail::createCPUGenerator());
  }
};
REGISTER_CUDA_HOOKS(CUDAHooks)
}  // namespace at

namespace {

// ------------------------------------------------------------------------------------ memory

std::atomic<int64_t> allocated{0}, most_allocated{0};

struct Block {  // memory of the device, which is a storage of the CPU
  explicit Block(Storage storage) : storage(std::move(storage)), bytes(this->storage.nbytes()) {
    const int64_t now = allocated += bytes;
    int64_t most = most_allocated;
    while (now > most && !most_allocated.compare_exchange_weak(most, now)) {
    }
  }
  ~Block() { allocated -= bytes; }
  static void free(void* block) { delete static_cast<Block*>(block); }

  Storage storage;
  int64_t bytes;
};

c10::DataPtr as_gpu_memory(Storage storage) {
  void* data = storage.mutable_data();
  return c10::DataPtr(data, new Block(std::move(storage)), &Block::free, gpu);
}

Tensor tensor_on(Storage storage, DispatchKey key, const Tensor& like) {
  auto made = at::detail::make_tensor<c10::TensorImpl>(
      std::move(storage), DispatchKeySet(key), like.dtype());
  made.unsafeGetTensorImpl()->set_sizes_and_strides(
      like.sizes(), like.strides(), like.storage_offset());
  return made;
}

Tensor moved_to_gpu(const Tensor& on_cpu) {
  const Storage& storage = on_cpu.storage();
  Storage made(
      Storage::use_byte_size_t(), storage.nbytes(), as_gpu_memory(storage), nullptr, false);
  return tensor_on(std::move(made), DispatchKey::CUDA, on_cpu);
}

Storage same_memory(const Storage& on_gpu, c10::Allocator* allocator = nullptr) {
  auto kept = new Storage(on_gpu);
  auto let_go = [](void* storage) { delete static_cast<Storage*>(storage); };
  c10::DataPtr data(on_gpu.mutable_data(), kept, let_go, cpu);
  return Storage(
      Storage::use_byte_size_t(), on_gpu.nbytes(), std::move(data), allocator, allocator != nullptr);
}

// --------------------------------------------------------------------------------- operations

// One operation: its tensors of the device, and the tensors of the CPU that stand for them.
class Call {
 public:
  Tensor to_cpu(const Tensor& tensor) {
    if (!tensor.defined() || !tensor.is_cuda()) {
      has_cpu_tensor |= tensor.defined() && tensor.dim() > 0;  // those without any may be of both
      return tensor;
    }
    has_gpu_tensor = true;
    tensors_.emplace_back(tensor, tensor_on(stand_in(tensor.storage()), DispatchKey::CPU, tensor));
    return tensors_.back().second;
  }

  Tensor to_gpu(const Tensor& result, bool is_new_on_gpu) const {
    if (!result.defined() || result.is_cuda()) return result;
    for (const auto& [on_gpu, on_cpu] : tensors_)
      if (on_cpu.is_same(result)) return on_gpu;
    for (const auto& [on_gpu, on_cpu] : storages_)
      if (result.storage().is_alias_of(on_cpu)) return tensor_on(on_gpu, DispatchKey::CUDA, result);
    return is_new_on_gpu ? moved_to_gpu(result) : result;
  }

  // Tensors that the operation has given another size, as those named by `out=`.
  void resize_as_on_cpu() {
    for (auto& [on_gpu, on_cpu] : storages_) {
      if (on_gpu.data() == on_cpu.data()) continue;
      on_gpu.unsafeGetStorageImpl()->set_data_ptr_noswap(as_gpu_memory(on_cpu));
      on_gpu.set_nbytes(on_cpu.nbytes());
    }
    for (auto& [on_gpu, on_cpu] : tensors_)
      on_gpu.unsafeGetTensorImpl()->set_sizes_and_strides(
          on_cpu.sizes(), on_cpu.strides(), on_cpu.storage_offset());
  }

  bool has_gpu_tensor = false, has_cpu_tensor = false;

 private:
  Storage stand_in(const Storage& on_gpu) {
    for (const auto& [other, on_cpu] : storages_)
      if (other.is_alias_of(on_gpu)) return on_cpu;
    storages_.emplace_back(on_gpu, same_memory(on_gpu, c10::GetAllocator(c10::kCPU)));
    return storages_.back().second;
  }

  std::vector<std::pair<Storage, Storage>> storages_;
  std::vector<std::pair<Tensor, Tensor>> tensors_;
};

template <typename Change>
IValue changed(const IValue& value, Change change) {
  if (value.isTensor()) return change(value.toTensor());
  if (value.isTensorList()) {
    auto tensors = value.toTensorVector();
    std::transform(tensors.begin(), tensors.end(), tensors.begin(), change);
    return tensors;
  }
  if (value.isOptionalTensorList()) {
    c10::List<std::optional<Tensor>> tensors;
    for (const auto& tensor : value.toOptionalTensorVector())
      tensors.push_back(tensor ? std::optional<Tensor>(change(*tensor)) : std::nullopt);
    return tensors;
  }
  return value;
}

// Copies are between devices; CUDA takes indices of the CPU, too.
const std::set<std::string> takes_both{
    "aten::copy_", "aten::index", "aten::index_put_", "aten::_index_put_impl_"};

std::atomic<int64_t> launched{0};
thread_local bool is_within_kernel = false;

// What is made of other operations here is one kernel there.
struct OneKernel {
  OneKernel() : is_outer(!is_within_kernel) {
    launched += is_outer;
    is_within_kernel = true;
  }
  ~OneKernel() { is_within_kernel = !is_outer; }
  const bool is_outer;
};

// Whether a GPU would be asked to compute, rather than its driver for memory or for a view.
bool is_launched(const c10::FunctionSchema& schema, const IValue* arguments) {
  static const std::set<std::string> of_memory{
      "aten::empty", "aten::empty_strided", "aten::set_", "aten::resize_", "aten::_reshape_alias",
      "aten::detach", "aten::_unsafe_view", "aten::_local_scalar_dense"};
  if (is_within_kernel || of_memory.count(schema.name())) return false;
  for (const auto& result : schema.returns())
    if (result.alias_info() && !result.alias_info()->isWrite()) return false;
  const bool is_copy = schema.name() == "aten::copy_";
  return !is_copy || !arguments[0].toTensor().is_same(arguments[1].toTensor());
}

void run_on_cpu(const c10::OperatorHandle& op, DispatchKeySet, torch::jit::Stack* stack) {
  at::AutoDispatchBelowADInplaceOrView below_autograd;
  const auto& schema = op.schema();
  const auto& arguments = schema.arguments();
  Call call;
  bool is_asked_for = false, is_for_cpu = false;
  const auto first = stack->size() - arguments.size();
  launched += is_launched(schema, stack->data() + first);
  for (size_t i = 0; i < arguments.size(); ++i) {  // generators come last
    IValue& value = (*stack)[first + i];
    if (value.isDevice()) {
      (value.toDevice().is_cuda() ? is_asked_for : is_for_cpu) = true;
      value = cpu;
    } else if (arguments[i].name() == "pin_memory") {
      value = IValue();
    } else if (value.isGenerator() || (arguments[i].name() == "generator" && call.has_gpu_tensor)) {
      const auto generator = value.isGenerator() ? value.toGenerator() : default_generator();
      TORCH_CHECK(generator.device().is_cuda(), schema.name(), ": the generator is of the CPU");
      value = of_cpu(generator);
    } else {
      value = changed(value, [&](const Tensor& tensor) { return call.to_cpu(tensor); });
    }
  }
  TORCH_CHECK(
      !call.has_gpu_tensor || !call.has_cpu_tensor || takes_both.count(schema.name()),
      "Expected all tensors to be on the same device, but found at least two devices, ", gpu,
      " and cpu! (", schema.name(), ")");
  op.redispatchBoxed(DispatchKeySet(DispatchKey::CPU), stack);
  call.resize_as_on_cpu();
  const bool is_new_on_gpu = is_asked_for || (call.has_gpu_tensor && !is_for_cpu);
  for (size_t i = stack->size() - schema.returns().size(); i < stack->size(); ++i)
    (*stack)[i] = changed((*stack)[i], [&](const Tensor& tensor) {
      return call.to_gpu(tensor, is_new_on_gpu);
    });
}

// ------------------------------------------------- kernels that CUDA has, and the CPU has not

Tensor attention(
    const Tensor& query, const Tensor& key, const Tensor& value, const std::optional<Tensor>& mask,
    double dropout, bool is_causal, std::optional<double> scale, bool shares_keys) {
  const OneKernel counted;
  TORCH_CHECK(dropout == 0.0, "attention with dropout is not pretended");
  auto heads = [&](const Tensor& x) {
    return shares_keys ? x.repeat_interleave(query.size(-3) / x.size(-3), -3) : x;
  };
  std::optional<Tensor> added = mask;
  if (mask && mask->scalar_type() == at::kBool)
    added = at::zeros(mask->sizes(), query.options()).masked_fill_(mask->logical_not(), -INFINITY);
  return std::get<0>(at::_scaled_dot_product_flash_attention_for_cpu(
      query, heads(key), heads(value), dropout, is_causal, added, scale));
}

std::tuple<Tensor, Tensor> fused_dropout(
    const Tensor& x, double kept, std::optional<at::Generator> generator) {
  const OneKernel counted;
  const auto mask = at::empty(x.sizes(), x.options().dtype(at::kFloat)).bernoulli_(kept, generator);
  return {x * mask.to(x.dtype()) / kept, mask.to(at::kByte)};
}

std::tuple<Tensor, Tensor> native_dropout(const Tensor& x, double dropped, std::optional<bool> on) {
  const OneKernel counted;
  const auto [y, mask] = fused_dropout(x, on.value_or(true) ? 1 - dropped : 1.0, std::nullopt);
  return {y, mask.to(at::kBool)};
}

Tensor& addmm_of_other_dtype(
    const Tensor& x, const Tensor& a, const Tensor& b, at::ScalarType dtype, const at::Scalar& beta,
    const at::Scalar& alpha, Tensor& out) {
  const OneKernel counted;
  return out.copy_(at::addmm(x.to(dtype), a.to(dtype), b.to(dtype), beta, alpha));
}

}  // namespace

TORCH_LIBRARY_IMPL(_, CUDA, library) {
  library.fallback(torch::CppFunction::makeFromBoxedFunction<&run_on_cpu>());
}

TORCH_LIBRARY_IMPL(aten, CUDA, library) {
  // Torch has one kernel for all devices, which asks which it is.
  library.impl("copy_", torch::CppFunction::makeFromBoxedFunction<&run_on_cpu>());
  library.impl("_foreach_copy_", torch::CppFunction::makeFromBoxedFunction<&run_on_cpu>());
  library.impl("_fused_dropout", &fused_dropout);
  library.impl("native_dropout", &native_dropout);
  library.impl("addmm.dtype_out", &addmm_of_other_dtype);
  library.impl("scaled_dot_product_attention", &attention);
}

TORCH_LIBRARY_IMPL(aten, AutogradCUDA, library) {
  library.impl("scaled_dot_product_attention", &attention);
}

PYBIND11_MODULE(TORCH_EXTENSION_NAME, module) {
  module.def("generator", &default_generator);
  module.def("on_cpu", [](const Tensor& tensor) {
    return tensor_on(same_memory(tensor.storage()), DispatchKey::CPU, tensor);
  });
  module.def("launched", [] { return launched.load(); });
  module.def("memory_allocated", [] { return allocated.load(); });
  module.def("max_memory_allocated", [] { return most_allocated.load(); });
  module.def("reset_peak_memory_stats", [] { most_allocated = allocated.load(); });
}
