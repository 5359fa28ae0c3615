//! The seccomp filter: ours, or one from a profile in the OCI or Docker JSON format.
//!
//! Ours allows what programs need and refuses the rest with `EPERM`, among it everything that makes or enters
//! namespaces, mounts, traces, loads code into the kernel, keeps keys, or talks to the kernel's own netlink families.

use std::{collections::BTreeMap, str::FromStr};

use agents_core::{Error, Result};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen as Width, SeccompCmpOp as Op, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};
use serde::{Deserialize, Serialize};
use syscalls::Sysno;

/// Calls that are allowed with any arguments. Names that an architecture lacks are left out there.
const ALLOWED: &[&str] = &[
    "accept",
    "accept4",
    "access",
    "alarm",
    "arch_prctl",
    "bind",
    "brk",
    "cachestat",
    "capget",
    "capset",
    "chdir",
    "chmod",
    "chown",
    "clock_getres",
    "clock_gettime",
    "clock_nanosleep",
    "clone3",
    "close",
    "close_range",
    "connect",
    "copy_file_range",
    "creat",
    "dup",
    "dup2",
    "dup3",
    "epoll_create",
    "epoll_create1",
    "epoll_ctl",
    "epoll_ctl_old",
    "epoll_pwait",
    "epoll_pwait2",
    "epoll_wait",
    "epoll_wait_old",
    "eventfd",
    "eventfd2",
    "execve",
    "execveat",
    "exit",
    "exit_group",
    "faccessat",
    "faccessat2",
    "fadvise64",
    "fallocate",
    "fchdir",
    "fchmod",
    "fchmodat",
    "fchmodat2",
    "fchown",
    "fchownat",
    "fcntl",
    "fdatasync",
    "fgetxattr",
    "flistxattr",
    "flock",
    "fork",
    "fremovexattr",
    "fsetxattr",
    "fstat",
    "fstatfs",
    "fsync",
    "ftruncate",
    "futex",
    "futex_requeue",
    "futex_wait",
    "futex_waitv",
    "futex_wake",
    "futimesat",
    "get_robust_list",
    "get_thread_area",
    "getcpu",
    "getcwd",
    "getdents",
    "getdents64",
    "getegid",
    "geteuid",
    "getgid",
    "getgroups",
    "getitimer",
    "getpeername",
    "getpgid",
    "getpgrp",
    "getpid",
    "getppid",
    "getpriority",
    "getrandom",
    "getresgid",
    "getresuid",
    "getrlimit",
    "getrusage",
    "getsid",
    "getsockname",
    "getsockopt",
    "gettid",
    "gettimeofday",
    "getuid",
    "getxattr",
    "inotify_add_watch",
    "inotify_init",
    "inotify_init1",
    "inotify_rm_watch",
    "io_cancel",
    "io_destroy",
    "io_getevents",
    "io_setup",
    "io_submit",
    "ioprio_get",
    "ioprio_set",
    "kill",
    "landlock_add_rule",
    "landlock_create_ruleset",
    "landlock_restrict_self",
    "lchown",
    "lgetxattr",
    "link",
    "linkat",
    "listen",
    "listxattr",
    "llistxattr",
    "lremovexattr",
    "lseek",
    "lsetxattr",
    "lstat",
    "madvise",
    "map_shadow_stack",
    "membarrier",
    "memfd_create",
    "mincore",
    "mkdir",
    "mkdirat",
    "mlock",
    "mlock2",
    "mlockall",
    "mmap",
    "mprotect",
    "mq_getsetattr",
    "mq_notify",
    "mq_open",
    "mq_timedreceive",
    "mq_timedsend",
    "mq_unlink",
    "mremap",
    "mseal",
    "msgctl",
    "msgget",
    "msgrcv",
    "msgsnd",
    "msync",
    "munlock",
    "munlockall",
    "munmap",
    "nanosleep",
    "newfstatat",
    "open",
    "openat",
    "openat2",
    "pause",
    "pidfd_open",
    "pidfd_send_signal",
    "pipe",
    "pipe2",
    "pkey_alloc",
    "pkey_free",
    "pkey_mprotect",
    "poll",
    "ppoll",
    "prctl",
    "pread64",
    "preadv",
    "preadv2",
    "prlimit64",
    "pselect6",
    "pwrite64",
    "pwritev",
    "pwritev2",
    "read",
    "readahead",
    "readlink",
    "readlinkat",
    "readv",
    "recvfrom",
    "recvmmsg",
    "recvmsg",
    "remap_file_pages",
    "removexattr",
    "rename",
    "renameat",
    "renameat2",
    "restart_syscall",
    "riscv_flush_icache",
    "riscv_hwprobe",
    "rmdir",
    "rseq",
    "rt_sigaction",
    "rt_sigpending",
    "rt_sigprocmask",
    "rt_sigqueueinfo",
    "rt_sigreturn",
    "rt_sigsuspend",
    "rt_sigtimedwait",
    "rt_tgsigqueueinfo",
    "sched_get_priority_max",
    "sched_get_priority_min",
    "sched_getaffinity",
    "sched_getattr",
    "sched_getparam",
    "sched_getscheduler",
    "sched_rr_get_interval",
    "sched_setaffinity",
    "sched_setattr",
    "sched_setparam",
    "sched_setscheduler",
    "sched_yield",
    "select",
    "semctl",
    "semget",
    "semop",
    "semtimedop",
    "sendfile",
    "sendmmsg",
    "sendmsg",
    "sendto",
    "set_robust_list",
    "set_thread_area",
    "set_tid_address",
    "setfsgid",
    "setfsuid",
    "setgid",
    "setgroups",
    "setitimer",
    "setpgid",
    "setpriority",
    "setregid",
    "setresgid",
    "setresuid",
    "setreuid",
    "setrlimit",
    "setsid",
    "setsockopt",
    "setuid",
    "setxattr",
    "shmat",
    "shmctl",
    "shmdt",
    "shmget",
    "shutdown",
    "sigaltstack",
    "signalfd",
    "signalfd4",
    "splice",
    "stat",
    "statfs",
    "statx",
    "symlink",
    "symlinkat",
    "sync",
    "sync_file_range",
    "syncfs",
    "sysinfo",
    "tee",
    "tgkill",
    "time",
    "timer_create",
    "timer_delete",
    "timer_getoverrun",
    "timer_gettime",
    "timer_settime",
    "timerfd_create",
    "timerfd_gettime",
    "timerfd_settime",
    "times",
    "tkill",
    "truncate",
    "umask",
    "uname",
    "unlink",
    "unlinkat",
    "utime",
    "utimensat",
    "utimes",
    "vfork",
    "vmsplice",
    "wait4",
    "waitid",
    "write",
    "writev",
];

/// Calls that answer `ENOSYS`, for which programs have a way around: the flags of `clone3` and the mode of `openat2` lie in
/// memory, where a filter cannot see them.
const UNKNOWN: &[&str] = &["clone3", "openat2"];

/// Every flag of `clone` that makes a namespace: the ones of `sched.h`, CLONE_NEWTIME being out of range here.
const CLONE_NAMESPACES: u64 = 0x7E02_0000;

/// The filters, in the order in which they are installed.
pub(crate) type Filters = Vec<BpfProgram>;

/// The default filter.
///
/// # Errors
///
/// `Unsupported` on an architecture that has no filter.
pub(crate) fn default_filters() -> Result<Filters> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    for name in ALLOWED {
        if let Ok(number) = Sysno::from_str(name) {
            rules.insert(i64::from(number.id()), Vec::new());
        }
    }
    let mut allow = |name: &str, alternatives: Vec<Vec<SeccompCondition>>| -> Result<()> {
        if let Ok(number) = Sysno::from_str(name) {
            let built: Result<Vec<_>, _> = alternatives.into_iter().map(SeccompRule::new).collect();
            rules.insert(i64::from(number.id()), built.map_err(broken)?);
        }
        Ok(())
    };
    let is = |argument, value| SeccompCondition::new(argument, Width::Qword, Op::Eq, value).map_err(broken);
    let masked = |argument, mask, value| {
        SeccompCondition::new(argument, Width::Qword, Op::MaskedEq(mask), value).map_err(broken)
    };
    allow("clone", vec![vec![masked(0, CLONE_NAMESPACES, 0)?]])?;
    let family = |number: i32| is(0, u64::from(number.unsigned_abs()));
    let mut sockets = vec![vec![family(libc::AF_UNIX)?]];
    for number in [libc::AF_INET, libc::AF_INET6] {
        for kind in [libc::SOCK_STREAM, libc::SOCK_DGRAM] {
            sockets.push(vec![family(number)?, masked(1, 0xF, u64::from(kind.unsigned_abs()))?]);
        }
    }
    // The C library lists interfaces through NETLINK_ROUTE, which is 0.
    sockets.push(vec![family(libc::AF_NETLINK)?, is(2, 0)?]);
    allow("socket", sockets)?;
    // Of the other families some have pairs too, and asking for one is enough to load its module.
    allow("socketpair", vec![vec![family(libc::AF_UNIX)?]])?;
    // FIFOs, sockets and plain files, but no devices.
    let kinds = [0, libc::S_IFREG, libc::S_IFIFO, libc::S_IFSOCK];
    for (name, argument) in [("mknod", 1), ("mknodat", 2)] {
        let kinds: Result<Vec<_>> = kinds
            .iter()
            .map(|kind| Ok(vec![masked(argument, u64::from(libc::S_IFMT), u64::from(*kind))?]))
            .collect();
        allow(name, kinds?)?;
    }
    // Nobody pushes characters into a terminal's input, TIOCSTI and TIOCLINUX.
    let not = |value| SeccompCondition::new(1, Width::Dword, Op::Ne, value).map_err(broken);
    allow(
        "ioctl",
        vec![vec![not(libc::TIOCSTI as _)?, not(libc::TIOCLINUX as _)?]],
    )?;
    // The execution domains that Docker allows too: Linux, with a 32-bit name, a query, and without address randomisation.
    let domains = [0u64, 0x0008, 0x2_0000, 0x2_0008, 0xFFFF_FFFF];
    let domains: Result<Vec<_>> = domains.into_iter().map(|domain| Ok(vec![is(0, domain)?])).collect();
    allow("personality", domains?)?;
    // The one that refuses comes last, since it refuses the installing of filters too.
    Ok(vec![
        other_numbers(),
        set_id_bits()?,
        first_process()?,
        unknown_calls()?,
        compile(rules, SeccompAction::Errno(errno(libc::EPERM)), SeccompAction::Allow)?,
    ])
}

/// The bits that lend a program its owner's or its group's rights.
const SET_ID: [u64; 2] = [0o4000, 0o2000];

/// Nobody inside makes a set-user-id or set-group-id file: in a writable folder of the host it would belong to the caller
/// there, so that any other user of the host could run the agent's program with the caller's rights. As in systemd's
/// `RestrictSUIDSGID`, `openat2` is unknown, since its mode lies in memory, where a filter cannot see it.
fn set_id_bits() -> Result<BpfProgram> {
    let bits = |argument, mask: u64, value: u64| {
        SeccompCondition::new(argument, Width::Dword, Op::MaskedEq(mask), value).map_err(broken)
    };
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    for (name, argument) in [
        ("chmod", 1),
        ("fchmod", 1),
        ("fchmodat", 2),
        ("fchmodat2", 2),
        ("creat", 1),
        ("mknod", 1),
        ("mknodat", 2),
    ] {
        if let Ok(number) = Sysno::from_str(name) {
            let rules = rules.entry(i64::from(number.id())).or_default();
            for bit in SET_ID {
                rules.push(SeccompRule::new(vec![bits(argument, bit, bit)?]).map_err(broken)?);
            }
        }
    }
    // The mode counts only where a file is made.
    let unnamed = u64::from((libc::O_TMPFILE & !libc::O_DIRECTORY).unsigned_abs());
    for (name, flags) in [("open", 1), ("openat", 2)] {
        if let Ok(number) = Sysno::from_str(name) {
            let rules = rules.entry(i64::from(number.id())).or_default();
            for making in [u64::from(libc::O_CREAT.unsigned_abs()), unnamed] {
                for bit in SET_ID {
                    let conditions = vec![bits(flags, making, making)?, bits(flags + 1, bit, bit)?];
                    rules.push(SeccompRule::new(conditions).map_err(broken)?);
                }
            }
        }
    }
    compile(rules, SeccompAction::Allow, errno_eperm())
}

/// Nobody inside takes the processor away from the first process, which has the agent's user: with it the container ends,
/// and it would end late.
fn first_process() -> Result<BpfProgram> {
    let is = |argument, value| SeccompCondition::new(argument, Width::Dword, Op::Eq, value).map_err(broken);
    let rule = |conditions| SeccompRule::new(conditions).map_err(broken);
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    for name in [
        "sched_setscheduler",
        "sched_setparam",
        "sched_setattr",
        "sched_setaffinity",
    ] {
        if let Ok(number) = Sysno::from_str(name) {
            rules.insert(i64::from(number.id()), vec![rule(vec![is(0, 1)?])?]);
        }
    }
    // By its number (PRIO_PROCESS is 0), and with all of its user (PRIO_USER is 2).
    let process = rule(vec![is(0, 0)?, is(1, 1)?])?;
    let user = rule(vec![is(0, 2)?])?;
    rules.insert(i64::from(Sysno::setpriority.id()), vec![process, user]);
    compile(rules, SeccompAction::Allow, errno_eperm())
}

/// Refuses the numbers of the x32 calls, which have the same architecture as the others and would pass a profile that
/// allows whatever it does not name.
fn other_numbers() -> BpfProgram {
    let instruction = |code: u32, jt, jf, k| seccompiler::sock_filter {
        code: u16::try_from(code).unwrap_or(0),
        jt,
        jf,
        k,
    };
    // The number of the call is the first field of `seccomp_data`, and X32_SYSCALL_BIT is set in these.
    vec![
        instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
        instruction(libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K, 0, 1, 0x4000_0000),
        instruction(
            libc::BPF_RET | libc::BPF_K,
            0,
            0,
            libc::SECCOMP_RET_ERRNO | errno(libc::ENOSYS),
        ),
        instruction(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW),
    ]
}

fn unknown_calls() -> Result<BpfProgram> {
    let numbers = UNKNOWN.iter().filter_map(|name| Sysno::from_str(name).ok());
    let rules = numbers.map(|number| (i64::from(number.id()), Vec::new())).collect();
    compile(rules, SeccompAction::Allow, SeccompAction::Errno(errno(libc::ENOSYS)))
}

fn refuse_openat2() -> Result<BpfProgram> {
    let rules = BTreeMap::from([(i64::from(Sysno::openat2.id()), Vec::new())]);
    compile(rules, SeccompAction::Allow, SeccompAction::Errno(errno(libc::ENOSYS)))
}

fn compile(
    rules: BTreeMap<i64, Vec<SeccompRule>>,
    otherwise: SeccompAction,
    matched: SeccompAction,
) -> Result<BpfProgram> {
    let arch = TargetArch::try_from(std::env::consts::ARCH).map_err(|_| {
        Error::unsupported(format!(
            "there is no seccomp filter for the architecture {}",
            std::env::consts::ARCH
        ))
    })?;
    let filter = SeccompFilter::new(rules, otherwise, matched, arch).map_err(broken)?;
    BpfProgram::try_from(filter).map_err(broken)
}

fn broken(error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::unexpected("the seccomp filter cannot be compiled").with_source(error)
}

fn errno(number: i32) -> u32 {
    number.unsigned_abs()
}

/// The `seccomp` object of the OCI runtime specification ("Linux Container Configuration", section Seccomp), which Docker's
/// profiles share but for `includes` and `excludes`.
#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
struct Profile {
    default_action: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    default_errno_ret: Option<u32>,
    #[serde(default)]
    syscalls: Vec<ProfileRule>,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
struct ProfileRule {
    #[serde(default)]
    names: Vec<String>,
    action: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    errno_ret: Option<u32>,
    #[serde(default)]
    args: Vec<ProfileArgument>,
    #[serde(default, skip_serializing)]
    includes: Conditions,
    #[serde(default, skip_serializing)]
    excludes: Conditions,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
struct ProfileArgument {
    index: u8,
    value: u64,
    #[serde(default)]
    value_two: u64,
    op: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Conditions {
    #[serde(default)]
    caps: Vec<String>,
    #[serde(default)]
    arches: Vec<String>,
    min_kernel: Option<String>,
}

impl Conditions {
    /// Whether all hold for this machine and the capabilities that the container keeps, as `includes` means it.
    fn all_hold(&self, capabilities: &[String]) -> bool {
        // Every kernel that this runtime works on is newer than the ones that profiles ask for (4.8).
        self.caps.iter().all(|name| capabilities.contains(name))
            && (self.arches.is_empty() || self.names_this_machine())
    }

    /// Whether any holds, as `excludes` means it.
    fn any_holds(&self, capabilities: &[String]) -> bool {
        self.caps.iter().any(|name| capabilities.contains(name))
            || self.names_this_machine()
            || self.min_kernel.is_some()
    }

    fn names_this_machine(&self) -> bool {
        let arch = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        self.arches.iter().any(|name| name == arch)
    }
}

/// Compiles a profile.
///
/// # Errors
///
/// `ConfigInvalid` for what is not a profile, or has an unknown action or operator.
pub(crate) fn profile_filters(text: &str, capabilities: &[String]) -> Result<Filters> {
    let profile: Profile = serde_json::from_str(text)
        .map_err(|error| Error::invalid(format!("seccomp_profile: this is not a seccomp profile: {error}")))?;
    let otherwise = action(&profile.default_action, profile.default_errno_ret)?;
    // One filter an action: the kernel runs all of them, and the strictest answer counts, seccomp(2).
    let mut groups: Vec<(SeccompAction, BTreeMap<i64, Vec<SeccompRule>>)> = Vec::new();
    for rule in &profile.syscalls {
        let applies = rule.includes.all_hold(capabilities) && !rule.excludes.any_holds(capabilities);
        let answer = action(&rule.action, rule.errno_ret)?;
        // What is refused by default needs no further refusal, and what is allowed by default no further permission.
        if !applies || refuses(&answer) == refuses(&otherwise) {
            continue;
        }
        let at = groups
            .iter()
            .position(|(known, _)| *known == answer)
            .unwrap_or_else(|| {
                groups.push((answer, BTreeMap::new()));
                groups.len() - 1
            });
        add(rule, &mut groups[at].1)?;
    }
    if groups.is_empty() {
        groups.push((
            if refuses(&otherwise) {
                SeccompAction::Allow
            } else {
                errno_eperm()
            },
            BTreeMap::new(),
        ));
    }
    // What no profile can want, first, since a profile may refuse the installing of filters.
    let mut filters = vec![other_numbers(), set_id_bits()?, first_process()?, refuse_openat2()?];
    // A profile that leaves a call such as clone3 out means it to look as if it did not exist, which is how the C library
    // learns to do without; of two refusals the kernel takes the one that was installed last.
    if let Some((_, rules)) = groups.iter_mut().find(|(answer, _)| *answer == SeccompAction::Allow) {
        let unknown = UNKNOWN
            .iter()
            .filter_map(|name| Sysno::from_str(name).ok())
            .map(|call| i64::from(call.id()));
        let left_out: Vec<_> = unknown.filter(|number| !rules.contains_key(number)).collect();
        if !left_out.is_empty() {
            rules.extend(left_out.into_iter().map(|number| (number, Vec::new())));
            filters.push(unknown_calls()?);
        }
    }
    for (answer, rules) in groups {
        filters.push(compile(rules, otherwise.clone(), answer)?);
    }
    Ok(filters)
}

/// A profile as the OCI runtime specification has it, without the rules whose conditions do not hold.
///
/// # Errors
///
/// As [`profile_filters`].
pub(crate) fn oci_profile(text: &str, capabilities: &[String]) -> Result<serde_json::Value> {
    let invalid = |error| Error::invalid(format!("seccomp_profile: this is not a seccomp profile: {error}"));
    let profile: Profile = serde_json::from_str(text).map_err(invalid)?;
    action(&profile.default_action, profile.default_errno_ret)?;
    let mut rules = Vec::new();
    for rule in &profile.syscalls {
        action(&rule.action, rule.errno_ret)?;
        rule.args
            .iter()
            .try_for_each(|argument| condition(argument).map(drop))?;
        if rule.includes.all_hold(capabilities) && !rule.excludes.any_holds(capabilities) {
            rules.push(rule);
        }
    }
    serde_json::to_value(Profile {
        syscalls: Vec::new(),
        ..profile
    })
    .and_then(|mut value| {
        value["syscalls"] = serde_json::to_value(rules)?;
        Ok(value)
    })
    .map_err(invalid)
}

fn errno_eperm() -> SeccompAction {
    SeccompAction::Errno(errno(libc::EPERM))
}

fn refuses(action: &SeccompAction) -> bool {
    !matches!(action, SeccompAction::Allow | SeccompAction::Log)
}

fn add(rule: &ProfileRule, rules: &mut BTreeMap<i64, Vec<SeccompRule>>) -> Result<()> {
    for name in &rule.names {
        let Ok(number) = Sysno::from_str(name) else {
            // Profiles name the calls of every architecture and of newer kernels; what is unknown has the default answer.
            tracing::debug!(name, "the seccomp profile names a call that is unknown here");
            continue;
        };
        let number = i64::from(number.id());
        let conditions: Result<Vec<_>> = rule.args.iter().map(condition).collect();
        let conditions = conditions?;
        // No alternatives at all means "with any arguments", which later conditions do not narrow again.
        match rules.get_mut(&number) {
            Some(alternatives) if alternatives.is_empty() => {}
            Some(alternatives) if conditions.is_empty() => alternatives.clear(),
            Some(alternatives) => alternatives.push(SeccompRule::new(conditions).map_err(broken)?),
            None if conditions.is_empty() => drop(rules.insert(number, Vec::new())),
            None => drop(rules.insert(number, vec![SeccompRule::new(conditions).map_err(broken)?])),
        }
    }
    Ok(())
}

fn condition(argument: &ProfileArgument) -> Result<SeccompCondition> {
    let (op, value) = match argument.op.as_str() {
        "SCMP_CMP_EQ" => (Op::Eq, argument.value),
        "SCMP_CMP_NE" => (Op::Ne, argument.value),
        "SCMP_CMP_LT" => (Op::Lt, argument.value),
        "SCMP_CMP_LE" => (Op::Le, argument.value),
        "SCMP_CMP_GT" => (Op::Gt, argument.value),
        "SCMP_CMP_GE" => (Op::Ge, argument.value),
        "SCMP_CMP_MASKED_EQ" => (Op::MaskedEq(argument.value), argument.value_two),
        other => {
            return Err(Error::invalid(format!("seccomp_profile: {other:?} is not an operator")));
        }
    };
    SeccompCondition::new(argument.index, Width::Qword, op, value).map_err(broken)
}

fn action(name: &str, number: Option<u32>) -> Result<SeccompAction> {
    Ok(match name {
        "SCMP_ACT_ALLOW" => SeccompAction::Allow,
        "SCMP_ACT_ERRNO" => SeccompAction::Errno(number.unwrap_or(errno(libc::EPERM))),
        "SCMP_ACT_KILL" | "SCMP_ACT_KILL_THREAD" => SeccompAction::KillThread,
        "SCMP_ACT_KILL_PROCESS" => SeccompAction::KillProcess,
        "SCMP_ACT_TRAP" => SeccompAction::Trap,
        "SCMP_ACT_LOG" => SeccompAction::Log,
        "SCMP_ACT_TRACE" => SeccompAction::Trace(number.unwrap_or(0)),
        other => return Err(Error::invalid(format!("seccomp_profile: {other:?} is not an action"))),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_filter_compiles_and_leaves_the_dangerous_calls_out() {
        let filters = default_filters().unwrap();
        assert!(
            filters
                .iter()
                .all(|program| !program.is_empty() && program.len() <= 4096)
        );
        for name in [
            "mount",
            "umount2",
            "unshare",
            "setns",
            "ptrace",
            "bpf",
            "keyctl",
            "add_key",
            "request_key",
            "kexec_load",
            "init_module",
            "perf_event_open",
            "userfaultfd",
            "io_uring_setup",
            "open_by_handle_at",
            "pivot_root",
            "chroot",
            "move_mount",
            "fsopen",
            "open_tree",
            "process_vm_readv",
            "settimeofday",
            "mknod",
            "swapon",
        ] {
            assert!(!ALLOWED.contains(&name), "{name}");
            assert!(
                Sysno::from_str(name).is_ok() || std::env::consts::ARCH != "x86_64",
                "{name} is misspelt"
            );
        }
        let unknown: Vec<_> = ALLOWED.iter().filter(|name| Sysno::from_str(name).is_err()).collect();
        assert!(unknown.len() < 12, "misspelt names stay refused: {unknown:?}");
        assert!(ALLOWED.is_sorted());
    }

    #[test]
    fn one_condition_excludes_and_all_of_them_include() {
        let kept = ["CAP_KILL".to_owned()];
        let conditions = |json: &str| serde_json::from_str::<Conditions>(json).unwrap();
        let one_of_two = conditions(r#"{"caps": ["CAP_KILL", "CAP_SYS_ADMIN"]}"#);
        assert!(one_of_two.any_holds(&kept) && !one_of_two.all_hold(&kept));
        assert!(!one_of_two.any_holds(&[]));
        let nothing = conditions("{}");
        assert!(nothing.all_hold(&[]) && !nothing.any_holds(&kept));
        let elsewhere = conditions(r#"{"caps": ["CAP_KILL"], "arches": ["s390"]}"#);
        assert!(elsewhere.any_holds(&kept) && !elsewhere.all_hold(&kept));
    }

    #[test]
    fn profiles_are_read_or_refused() {
        let good = r#"{"defaultAction": "SCMP_ACT_ERRNO", "architectures": ["SCMP_ARCH_X86_64"], "syscalls": [
            {"names": ["read", "not_a_call"], "action": "SCMP_ACT_ALLOW"},
            {"names": ["clone"], "action": "SCMP_ACT_ALLOW",
             "args": [{"index": 0, "value": 2114060288, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}]},
            {"names": ["mount"], "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["CAP_SYS_ADMIN"]}}]}"#;
        assert_eq!(profile_filters(good, &[]).unwrap().len(), 6);
        for bad in [
            "{}",
            "[]",
            r#"{"defaultAction": "ALLOW"}"#,
            r#"{"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [{"names": ["read"], "action": "SCMP_ACT_NOTIFY"}]}"#,
            r#"{"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [{"names": ["read"], "action": "SCMP_ACT_ALLOW", "args": [{"index": 9, "value": 0, "op": "SCMP_CMP_EQ"}]}]}"#,
        ] {
            assert!(profile_filters(bad, &[]).is_err(), "{bad}");
        }
    }
}
