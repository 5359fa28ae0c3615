/* Tries one thing that a contained process must not be able to do, and prints a line "NAME refused ERRNO" or
   "NAME ALLOWED". Built by the test suite with `cc -static` and run inside a container, never outside.

   "Refused" means an error that says "not permitted" or "not here". Any other error means that the kernel looked at the
   arguments, so the call as such is open. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

static void *in_a_thread(void *said)
{
    return said;
}

static long make_thread(void)
{
    pthread_t thread;
    void *said = NULL;
    int error = pthread_create(&thread, NULL, in_a_thread, &said);
    if (error == 0) error = pthread_join(thread, &said);
    errno = error;
    return error == 0 && said != NULL ? 0 : -1;
}

static long attempt(const char *name)
{
    static char zeros[4096];
    memset(zeros, 0, sizeof zeros);
#define IS(text) (strcmp(name, text) == 0)
    if (IS("control")) return syscall(SYS_getppid);
    if (IS("thread")) return make_thread();
    if (IS("mount_tmpfs")) return mount("none", "/tmp", "tmpfs", 0, NULL);
    if (IS("mount_bind")) return mount("/proc", "/tmp", NULL, MS_BIND, NULL);
    if (IS("remount_root")) return mount(NULL, "/", NULL, MS_REMOUNT | MS_BIND, NULL);
    if (IS("mount_proc")) return mount("proc", "/proc", "proc", 0, NULL);
    if (IS("mount_cgroup")) return mount("none", "/tmp", "cgroup2", 0, NULL);
    if (IS("umount")) return umount2("/proc", MNT_DETACH);
    if (IS("pivot_root")) return syscall(SYS_pivot_root, "/", "/");
    if (IS("chroot")) return chroot("/");
    if (IS("fsopen")) return syscall(430, "tmpfs", 0);
    if (IS("open_tree")) return syscall(428, AT_FDCWD, "/", 1 /* OPEN_TREE_CLONE */);
    if (IS("move_mount")) return syscall(429, AT_FDCWD, "/proc", AT_FDCWD, "/tmp", 0);
    if (IS("mount_setattr")) return syscall(442, AT_FDCWD, "/", 0, zeros, 32);
    if (IS("unshare_user")) return unshare(CLONE_NEWUSER);
    if (IS("unshare_mount")) return unshare(CLONE_NEWNS);
    if (IS("unshare_net")) return unshare(CLONE_NEWNET);
    if (IS("unshare_pid")) return unshare(CLONE_NEWPID);
    if (IS("unshare_cgroup")) return unshare(CLONE_NEWCGROUP);
    if (IS("clone_user")) {
        long pid = syscall(SYS_clone, CLONE_NEWUSER | SIGCHLD, 0, 0, 0, 0);
        if (pid == 0) _exit(0);
        return pid;
    }
    if (IS("clone3_user")) {
        uint64_t args[11] = { CLONE_NEWUSER, 0, 0, 0, SIGCHLD };
        long pid = syscall(SYS_clone3, args, sizeof args);
        if (pid == 0) _exit(0);
        return pid;
    }
    if (IS("setns")) {
        int fd = open("/proc/1/ns/mnt", O_RDONLY);
        if (fd < 0) fd = open("/proc/self/ns/mnt", O_RDONLY);
        return fd < 0 ? -1 : setns(fd, 0);
    }
    if (IS("mknod_char")) return mknod("/tmp/probe-null", S_IFCHR | 0666, makedev(1, 3));
    if (IS("mknod_block")) return mknod("/tmp/probe-disk", S_IFBLK | 0666, makedev(254, 0));
    if (IS("ptrace")) {
        pid_t victim = getpid() == 1 ? getppid() : 1;
        if (victim == 0) { errno = EPERM; return -1; }
        return ptrace(PTRACE_ATTACH, victim, NULL, NULL);
    }
    if (IS("process_vm_readv")) {
        struct iovec here = { zeros, 8 }, there = { (void *)0x400000, 8 };
        return syscall(SYS_process_vm_readv, 1, &here, 1, &there, 1, 0);
    }
    if (IS("bpf")) {
        uint32_t attributes[32] = { 2 /* BPF_MAP_TYPE_ARRAY */, 4, 4, 1 };
        return syscall(SYS_bpf, 0 /* BPF_MAP_CREATE */, attributes, sizeof attributes);
    }
    if (IS("keyctl")) return syscall(SYS_keyctl, 0 /* GET_KEYRING_ID */, -3, 1);
    if (IS("add_key")) return syscall(SYS_add_key, "user", "probe", "x", 1, -3);
    if (IS("request_key")) return syscall(SYS_request_key, "user", "probe", NULL, 0);
    if (IS("socket_raw")) return socket(AF_INET, SOCK_RAW, 1);
    if (IS("socket_packet")) return socket(AF_PACKET, SOCK_RAW, 0);
    if (IS("socket_netlink_audit")) return socket(AF_NETLINK, SOCK_RAW, 9);
    if (IS("socket_netlink_netfilter")) return socket(AF_NETLINK, SOCK_RAW, 12);
    if (IS("socket_vsock")) return socket(40, SOCK_STREAM, 0);
    if (IS("userfaultfd")) return syscall(SYS_userfaultfd, 0);
    if (IS("perf_event_open")) {
        uint32_t attributes[32] = { 1 /* PERF_TYPE_SOFTWARE */, 128 };
        return syscall(SYS_perf_event_open, attributes, 0, -1, -1, 0);
    }
    if (IS("io_uring_setup")) return syscall(425, 1, zeros);
    if (IS("kexec_load")) return syscall(SYS_kexec_load, 0, 0, NULL, 0);
    if (IS("open_by_handle_at")) {
        struct { unsigned bytes; int type; unsigned char handle[8]; } handle = { 8, 1, { 2 } };
        return syscall(SYS_open_by_handle_at, AT_FDCWD, &handle, O_RDONLY);
    }
    if (IS("tiocsti")) {
        int control = posix_openpt(O_RDWR | O_NOCTTY);
        if (control < 0 || grantpt(control) || unlockpt(control)) return -1;
        setsid();
        int terminal = open(ptsname(control), O_RDWR);
        if (terminal < 0) return -1;
        ioctl(terminal, TIOCSCTTY, 0);
        return ioctl(terminal, TIOCSTI, "x");
    }
    if (IS("sethostname")) return sethostname("probe", 5);
    if (IS("setdomainname")) return setdomainname("probe", 5);
    if (IS("init_module")) return syscall(SYS_init_module, zeros, 16, "");
    if (IS("finit_module")) return syscall(SYS_finit_module, open("/dev/null", O_RDONLY), "", 0);
    if (IS("delete_module")) return syscall(SYS_delete_module, "no_such_module", O_NONBLOCK);
    if (IS("settimeofday")) { struct timeval now; gettimeofday(&now, NULL); return settimeofday(&now, NULL); }
    if (IS("swapon")) return syscall(SYS_swapon, "/proc/self/status", 0);
    if (IS("syslog")) return syscall(SYS_syslog, 3, zeros, 64);
    if (IS("acct")) return syscall(SYS_acct, NULL);
    if (IS("setuid_root")) return setuid(0);
    if (IS("setgid_root")) return setgid(0);
    if (IS("setgroups")) { gid_t root = 0; return syscall(SYS_setgroups, 1, &root); }
    if (IS("capset")) {
        struct { uint32_t version; int pid; } header = { 0x20080522, 0 };
        uint32_t all[6] = { ~0u, ~0u, 0, ~0u, ~0u, 0 };
        return syscall(SYS_capset, &header, all);
    }
    if (IS("sched_realtime")) { struct sched_param high = { 10 }; return sched_setscheduler(0, SCHED_FIFO, &high); }
    if (IS("fanotify_init")) return syscall(SYS_fanotify_init, 0, O_RDONLY);
    if (IS("open_kmsg")) return open("/dev/kmsg", O_RDONLY);
    if (IS("open_mem")) return open("/dev/mem", O_RDONLY);
    if (IS("open_kvm")) return open("/dev/kvm", O_RDWR);
    if (IS("open_fuse")) return open("/dev/fuse", O_RDWR);
    if (IS("open_core_pattern")) return open("/proc/sys/kernel/core_pattern", O_WRONLY);
    if (IS("open_sysrq")) return open("/proc/sysrq-trigger", O_WRONLY);
    if (IS("iopl")) {
#ifdef SYS_iopl
        return syscall(SYS_iopl, 3);
#else
        errno = ENOSYS;
        return -1;
#endif
    }
    fprintf(stderr, "%s is unknown\n", name);
    _exit(2);
}

static int means_refused(const char *name, int error)
{
    if (error == EPERM || error == EACCES || error == ENOSYS) return 1;
    if (strncmp(name, "open_", 5) == 0) return error == ENOENT || error == ENXIO || error == ENODEV || error == EROFS;
    if (strncmp(name, "socket_", 7) == 0) return error == EAFNOSUPPORT || error == EPROTONOSUPPORT || error == ESOCKTNOSUPPORT;
    /* The number has no meaning in this user namespace. */
    if (IS("setuid_root") || IS("setgid_root") || IS("setgroups")) return error == EINVAL;
    /* Kernels can have it off. */
    return IS("tiocsti") && error == EIO;
}

int main(int count, char **names)
{
    for (int i = 1; i < count; i++) {
        /* In a child, for a filter may kill instead of refuse, and one attempt must not spoil the next. */
        pid_t child = fork();
        if (child == 0) {
            errno = 0;
            long result = attempt(names[i]);
            if (result >= 0) printf("%s ALLOWED\n", names[i]);
            else printf("%s %s %s\n", names[i], means_refused(names[i], errno) ? "refused" : "ALLOWED", strerror(errno));
            fflush(stdout);
            _exit(0);
        }
        int status = 0;
        if (child < 0) { perror("fork"); return 1; }
        while (waitpid(child, &status, 0) < 0 && errno == EINTR) {}
        if (WIFSIGNALED(status)) printf("%s refused by signal %d\n", names[i], WTERMSIG(status));
        fflush(stdout);
    }
    return 0;
}
