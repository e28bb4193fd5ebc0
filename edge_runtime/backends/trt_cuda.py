"""GPU memory and a stream through the CUDA driver library, which every machine with an NVIDIA driver has.

TensorRT runs in the device's primary context; this module uses the same one, so addresses can be handed over as they
are. No other package is needed for it.
"""

import ctypes
from dataclasses import dataclass

import numpy as np

from edge_runtime.session import EngineError

_LIBRARIES = ("libcuda.so.1", "libcuda.so")
_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*
_NAME_BYTES = 256

_Pointer = ctypes.c_uint64  # CUdeviceptr
_Handle = ctypes.c_void_p  # CUcontext, CUstream
_SIGNATURES: dict[str, tuple[type, ...]] = {
    "cuInit": (ctypes.c_uint,),
    "cuDeviceGet": (ctypes.POINTER(ctypes.c_int), ctypes.c_int),
    "cuDeviceGetName": (ctypes.c_char_p, ctypes.c_int, ctypes.c_int),
    "cuDeviceGetAttribute": (ctypes.POINTER(ctypes.c_int), ctypes.c_int, ctypes.c_int),
    "cuDevicePrimaryCtxRetain": (ctypes.POINTER(_Handle), ctypes.c_int),
    "cuDevicePrimaryCtxRelease_v2": (ctypes.c_int,),
    "cuCtxSetCurrent": (_Handle,),
    "cuMemAlloc_v2": (ctypes.POINTER(_Pointer), ctypes.c_size_t),
    "cuMemFree_v2": (_Pointer,),
    "cuMemcpyHtoDAsync_v2": (_Pointer, ctypes.c_void_p, ctypes.c_size_t, _Handle),
    "cuMemcpyDtoHAsync_v2": (ctypes.c_void_p, _Pointer, ctypes.c_size_t, _Handle),
    "cuStreamCreate": (ctypes.POINTER(_Handle), ctypes.c_uint),
    "cuStreamSynchronize": (_Handle,),
    "cuStreamDestroy_v2": (_Handle,),
    "cuGetErrorString": (ctypes.c_int, ctypes.POINTER(ctypes.c_char_p)),
}


class CudaError(EngineError):
    """The CUDA driver is missing or refused a call."""


@dataclass(frozen=True)
class Gpu:
    """Which GPU: engines are valid for one name and compute capability only."""

    name: str
    compute_capability: str  # "8.7"


class Cuda:
    """One device: its primary context, one stream, and memory. Use from one thread at a time."""

    def __init__(self, library: ctypes.CDLL, device: int, gpu: Gpu) -> None:
        self.gpu = gpu
        self._library = library
        self._device = device
        self._context, self._stream = _Handle(), _Handle()
        self._allocated: set[int] = set()
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(self._context), device)
        self.make_current()
        self._call("cuStreamCreate", ctypes.byref(self._stream), 1)  # CU_STREAM_NON_BLOCKING

    @property
    def stream(self) -> int:
        """The stream as the integer that TensorRT takes."""
        return self._stream.value or 0

    def make_current(self) -> None:
        """Bind the context to the calling thread."""
        self._call("cuCtxSetCurrent", self._context)

    def allocate(self, size: int) -> int:
        """Address of `size` bytes of device memory, at least one."""
        address = _Pointer()
        self._call("cuMemAlloc_v2", ctypes.byref(address), max(1, size))
        self._allocated.add(address.value)
        return address.value

    def upload(self, address: int, array: np.ndarray) -> None:
        """Queue a copy to the device; `array` is C-contiguous and lives until `synchronise` returns."""
        self._call("cuMemcpyHtoDAsync_v2", address, array.ctypes.data, array.nbytes, self._stream)

    def download(self, array: np.ndarray, address: int) -> None:
        """Queue a copy from the device into `array`, valid once `synchronise` returned."""
        self._call("cuMemcpyDtoHAsync_v2", array.ctypes.data, address, array.nbytes, self._stream)

    def synchronise(self) -> None:
        """Wait for everything in the stream.

        Raises:
            CudaError: Something that was queued failed.
        """
        self._call("cuStreamSynchronize", self._stream)

    def close(self) -> None:
        """Give all memory, the stream and the context back; safe to call twice."""
        if not self._context:
            return
        self.make_current()
        for address in self._allocated:
            self._call("cuMemFree_v2", address)
        self._allocated.clear()
        self._call("cuStreamDestroy_v2", self._stream)
        self._call("cuDevicePrimaryCtxRelease_v2", self._device)
        self._context = _Handle()

    def _call(self, name: str, *arguments: object) -> None:
        _check(self._library, name, getattr(self._library, name)(*arguments))


def open_cuda(device: int = 0) -> Cuda:
    """Open the CUDA driver and a device.

    Raises:
        CudaError: No driver or no such device.
    """
    library = _load()
    _check(library, "cuInit", library.cuInit(0))
    handle = ctypes.c_int()
    _check(library, "cuDeviceGet", library.cuDeviceGet(ctypes.byref(handle), device))
    name = ctypes.create_string_buffer(_NAME_BYTES)
    _check(library, "cuDeviceGetName", library.cuDeviceGetName(name, _NAME_BYTES, handle.value))
    parts = []
    for attribute in (_MAJOR, _MINOR):
        value = ctypes.c_int()
        _check(
            library,
            "cuDeviceGetAttribute",
            library.cuDeviceGetAttribute(ctypes.byref(value), attribute, handle.value),
        )
        parts.append(str(value.value))
    return Cuda(library, handle.value, Gpu(name.value.decode("utf-8", "replace"), ".".join(parts)))


def _load() -> ctypes.CDLL:
    for name in _LIBRARIES:
        try:
            library = ctypes.CDLL(name)
        except OSError:
            continue
        for function, arguments in _SIGNATURES.items():
            getattr(library, function).argtypes = arguments
            getattr(library, function).restype = ctypes.c_int
        return library
    raise CudaError(
        f"Wanted the NVIDIA driver ({_LIBRARIES[0]}), found none. TensorRT artefacts run on a Jetson or a GPU host; "
        "export for a CPU board otherwise."
    )


def _check(library: ctypes.CDLL, name: str, status: int) -> None:
    if status == 0:
        return
    text = ctypes.c_char_p()
    library.cuGetErrorString(status, ctypes.byref(text))
    reason = text.value.decode("utf-8", "replace") if text.value else "unknown error"
    raise CudaError(f"Wanted {name} to succeed, found CUDA error {status}: {reason}.")
