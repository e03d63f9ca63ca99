// The device "other": plain memory, but in PyTorch's eyes not the CPU's. See __init__.py for what it is for.
//
// Nothing is computed here. A tensor's operation is checked as CUDA would check it, and then handed to the CPU's code.
// Only what makes, moves, resizes or looks at memory needs code of its own.

#include <ATen/ATen.h>
#include <ATen/EmptyTensor.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <ATen/native/CPUFallback.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/view_native.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <c10/core/impl/alloc_cpu.h>
#include <torch/library.h>

#include <cstring>

namespace {

using at::IntArrayRef;
using at::Tensor;

constexpr auto kOther = c10::DeviceType::PrivateUse1;
const c10::Device other(kOther, 0);

// -- memory -----------------------------------------------------------------------------------------------------------

void release(void* memory) { c10::free_cpu(memory); }

struct OtherAllocator final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    void* memory = c10::alloc_cpu(bytes);
    return {memory, memory, &release, other};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &release; }
  void copy_data(void* to, const void* from, std::size_t bytes) const override { std::memcpy(to, from, bytes); }
};
OtherAllocator allocator;
REGISTER_ALLOCATOR(kOther, &allocator)

void grow(const c10::Storage& storage, size_t bytes) {
  c10::DataPtr memory = allocator.allocate(bytes);
  if (const size_t kept = std::min(bytes, storage.nbytes())) std::memcpy(memory.get(), storage.data(), kept);
  storage.set_data_ptr_noswap(std::move(memory));
  storage.set_nbytes(bytes);
}

struct OtherGuard final : c10::impl::NoOpDeviceGuardImpl<kOther> {
  c10::Device getDevice() const override { return other; }
  c10::Device exchangeDevice(c10::Device) const override { return other; }
  // The backward pass asks for streams and waits for their events; here all is done when a call returns.
  static c10::Stream here() { return c10::Stream(c10::Stream::DEFAULT, other); }
  c10::Stream getStream(c10::Device) const noexcept override { return here(); }
  c10::Stream getDefaultStream(c10::Device) const override { return here(); }
  c10::Stream exchangeStream(c10::Stream) const noexcept override { return here(); }
  void record(void**, const c10::Stream&, const c10::DeviceIndex, const c10::EventFlag) const override {}
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  void destroyEvent(void*, const c10::DeviceIndex) const noexcept override {}
};
C10_REGISTER_GUARD_IMPL(PrivateUse1, OtherGuard);

struct OtherHooks final : at::PrivateUse1HooksInterface {
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  c10::DeviceIndex deviceCount() const override { return 1; }
  c10::DeviceIndex getCurrentDevice() const override { return 0; }
  void resizePrivateUse1Bytes(const c10::Storage& storage, size_t bytes) const override { grow(storage, bytes); }
};
const bool hooked = [] {
  at::RegisterPrivateUse1HooksInterface(new OtherHooks());
  return true;
}();

// -- operations that make, move or look at memory ---------------------------------------------------------------------

// The same bytes as a tensor of the CPU; valid as long as `tensor` is.
Tensor on_cpu(const Tensor& tensor) {
  if (!tensor.is_privateuseone()) return tensor;
  const auto storage = tensor.storage();
  const auto items = static_cast<int64_t>(storage.nbytes() / tensor.element_size());
  return at::from_blob(const_cast<void*>(storage.data()), {items}, at::TensorOptions().dtype(tensor.dtype()))
      .as_strided(tensor.sizes(), tensor.strides(), tensor.storage_offset());
}

Tensor empty(IntArrayRef size, std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
             std::optional<at::Device>, std::optional<bool>, std::optional<at::MemoryFormat> format) {
  return at::detail::empty_generic(size, &allocator, c10::DispatchKeySet(c10::DispatchKey::PrivateUse1),
                                   c10::dtype_or_default(dtype), format);
}

Tensor empty_strided(IntArrayRef size, IntArrayRef stride, std::optional<at::ScalarType> dtype,
                     std::optional<at::Layout>, std::optional<at::Device>, std::optional<bool>) {
  return at::detail::empty_strided_generic(size, stride, &allocator,
                                           c10::DispatchKeySet(c10::DispatchKey::PrivateUse1),
                                           c10::dtype_or_default(dtype));
}

Tensor copy_from(const Tensor& from, const Tensor& to, bool) {
  on_cpu(to).copy_(on_cpu(from));
  return to;
}

Tensor copy_from_and_resize(const Tensor& from, const Tensor& to) {
  if (to.sizes() != from.sizes()) to.resize_(from.sizes());
  return copy_from(from, to, false);
}

const Tensor& resize(const Tensor& self, c10::SymIntArrayRef size, std::optional<at::MemoryFormat>) {
  const auto sizes = C10_AS_INTARRAYREF_SLOW(size);
  if (sizes == self.sizes()) return self;
  const auto bytes = (c10::multiply_integers(sizes) + self.storage_offset()) * self.element_size();
  if (self.storage().nbytes() < bytes) grow(self.storage(), bytes);
  self.unsafeGetTensorImpl()->set_sizes_contiguous(sizes);
  return self;
}

Tensor& set_storage(Tensor& self, at::Storage storage, int64_t offset, IntArrayRef size, IntArrayRef stride) {
  self.unsafeGetTensorImpl()->set_storage_keep_dtype(std::move(storage));
  self.unsafeGetTensorImpl()->set_sizes_and_strides(size, stride, offset);
  return self;
}

Tensor& set_whole_storage(Tensor& self, at::Storage storage) {
  const auto items = static_cast<int64_t>(storage.nbytes() / self.element_size());
  return set_storage(self, std::move(storage), 0, {items}, {1});
}

int64_t attention_kind(const Tensor&, const Tensor&, const Tensor&, const std::optional<Tensor>&, double, bool,
                       std::optional<double>, bool) {
  return 0;  // the plain formula
}

// -- all other operations ---------------------------------------------------------------------------------------------

bool takes_indices(const std::string& name) {
  return name == "aten::index" || name == "aten::index_put" || name == "aten::index_put_" ||
         name == "aten::_index_put_impl_";
}

// As on CUDA: a tensor of the CPU may go along only where it is a single number that is read, or an index. In a list not
// even that: CUDA's fused Adam refuses a step counter that is on the CPU.
void check_devices(const c10::FunctionSchema& schema, at::ArrayRef<c10::IValue> values) {
  const bool indexing = takes_indices(schema.name());
  bool any_here = false;
  for (size_t i = 0; i < values.size(); ++i) {
    const bool written = schema.arguments()[i].alias_info() && schema.arguments()[i].alias_info()->isWrite();
    std::vector<Tensor> tensors;
    if (values[i].isTensor()) tensors.push_back(values[i].toTensor());
    if (values[i].isTensorList()) tensors = values[i].toTensorVector();
    if (values[i].isOptionalTensorList())
      for (const std::optional<Tensor>& each : values[i].toOptionalTensorList()) tensors.push_back(each.value_or(Tensor()));
    for (const Tensor& each : tensors) {
      if (!each.defined()) continue;
      any_here |= each.is_privateuseone();
      if (!each.is_cpu()) continue;
      TORCH_CHECK(!(indexing && i == 0),
                  "indices should be either on cpu or on the same device as the indexed tensor (cpu)");
      const bool is_index = indexing && i == 1;
      const bool is_number = values[i].isTensor() && each.dim() == 0 && !written;
      TORCH_CHECK(is_index || is_number, "Expected all tensors to be on the same device, but found ",
                  "at least two devices, other:0 and cpu! (argument ", schema.arguments()[i].name(), " of ",
                  schema.name(), ")");
    }
  }
  for (const c10::IValue& value : values)
    TORCH_CHECK(!any_here || !value.isGenerator() || !value.toGenerator().device().is_cpu(),
                "Expected a 'other' device type for generator but found 'cpu' (", schema.name(), ")");
}

void run_on_cpu(const c10::OperatorHandle& operation, torch::jit::Stack* stack) {
  const auto& schema = operation.schema();
  check_devices(schema, torch::jit::last(*stack, schema.arguments().size()));
  at::native::cpu_fallback(operation, stack, /*error_on_views=*/true);
}

TORCH_LIBRARY_IMPL(_, PrivateUse1, all) { all.fallback(torch::CppFunction::makeFromBoxedFunction<&run_on_cpu>()); }

// Autocasting casts nothing here: "other" has no precision that pays.
TORCH_LIBRARY_IMPL(_, AutocastPrivateUse1, all) { all.fallback(torch::CppFunction::makeFallthrough()); }

TORCH_LIBRARY_IMPL(aten, PrivateUse1, own) {
  own.impl("empty.memory_format", &empty);
  own.impl("empty_strided", &empty_strided);
  own.impl("_copy_from", &copy_from);
  own.impl("_copy_from_and_resize", &copy_from_and_resize);
  own.impl("resize_", &resize);
  own.impl("set_.source_Storage", &set_whole_storage);
  own.impl("set_.source_Storage_storage_offset", &set_storage);
  own.impl("as_strided", [](const Tensor& self, IntArrayRef size, IntArrayRef stride, std::optional<int64_t> offset) {
    return at::native::as_strided_tensorimpl(self, size, stride, offset);
  });
  own.impl("view", [](const Tensor& self, IntArrayRef size) { return at::native::view(self, size); });
  own.impl("_reshape_alias", [](const Tensor& self, IntArrayRef size, IntArrayRef stride) {
    return at::native::_reshape_alias(self, size, stride);
  });
  own.impl("_fused_sdp_choice", &attention_kind);
}

}  // namespace
