/* The lab's libcrypto.so.3: whoever loads it dies, saying why.
 *
 * VDDK ships its own OpenSSL beside libvixDiskLib, and LD_LIBRARY_PATH has to point there for VDDK's sake. Any other
 * program started with that variable (a Python that imports ssl or hashlib, say) then picks up VDDK's libcrypto for the
 * system's, and works or crashes as luck will have it. Here there is no luck.
 *
 * A constructor is too late: a library linked against the real libcrypto misses its symbols first, and Python turns that
 * into an ImportError that hashlib swallows. An indirect function is resolved while this library itself is relocated,
 * before any library that needs it; nothing of libc may be called then, hence the system calls.
 */
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#define MESSAGE                                                                                                        \
    "libcrypto.so.3 of the VDDK folder was loaded by this process: LD_LIBRARY_PATH points to VDDK, and something "     \
    "here (ssl? hashlib?) wants OpenSSL. Only a data mover that keeps both out may have that path.\n"

#if defined(__x86_64__)
static inline __attribute__((always_inline)) long system_call(long number, long a, long b, long c)
{
    long result;
    __asm__ volatile("syscall" : "=a"(result) : "a"(number), "D"(a), "S"(b), "d"(c) : "rcx", "r11", "memory");
    return result;
}

static void nothing(void)
{
}

__attribute__((used)) static void (*resolve_poison(void))(void)
{
    static const char message[] = MESSAGE;
    system_call(SYS_write, STDERR_FILENO, (long)message, sizeof message - 1);
    long process = system_call(SYS_getpid, 0, 0, 0), thread = system_call(SYS_gettid, 0, 0, 0);
    system_call(SYS_tgkill, process, thread, SIGABRT);
    system_call(SYS_exit_group, 134, 0, 0); /* SIGABRT is blocked or ignored */
    return nothing;
}

__attribute__((visibility("default"))) void vrepl_lab_poison(void) __attribute__((ifunc("resolve_poison")));
__attribute__((visibility("default"))) void (*vrepl_lab_poison_pointer)(void) = vrepl_lab_poison;
#endif

__attribute__((constructor)) static void die(void)
{
    static const char message[] = MESSAGE;
    if (write(STDERR_FILENO, message, sizeof message - 1) < 0)
        abort();
    abort();
}
