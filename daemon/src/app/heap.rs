//! Keeps glibc's heaps from holding on to large buffers.
#![allow(unsafe_code)]

/// Allocations of this size and more, in bytes, go back to the kernel when they are freed.
#[cfg(target_env = "gnu")]
const LARGE: nix::libc::c_int = 1 << 20;

/// Has every large buffer mapped by itself, so that it goes back to the kernel when it is freed. Left alone, glibc
/// raises the size from which it does so to that of the largest buffer freed, up to 32 MiB; bodies of requests and
/// spans then lie in the heaps of its arenas, which many threads keep in pieces: some 350 MB after a few pulls, against
/// 46. To be called before there are other threads. Other C libraries are left alone.
pub fn return_large_buffers() {
    #[cfg(target_env = "gnu")]
    // SAFETY: mallopt(3) takes two numbers and keeps no pointer. It must not run beside another call of itself, and
    // only `main` calls this.
    let done = unsafe { nix::libc::mallopt(nix::libc::M_MMAP_THRESHOLD, LARGE) };
    #[cfg(target_env = "gnu")]
    if done == 0 {
        tracing::debug!("the C library keeps its own threshold for large buffers");
    }
}
