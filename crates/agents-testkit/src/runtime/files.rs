//! The cases about files, users and secrets.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::fs::MetadataExt,
    path::Path,
    time::Duration,
};

use agents_core::{
    CopyFromRequest, CopyToRequest, ErrorKind, ExecRequest, Mount, ResourceLimits, Secret, SecretBytes, SecurityConfig,
    SessionId, User,
};
use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};

use super::{Fx, MIB, RuntimeFixture, archive, exited, first_line, kind_of, once, shell, stdout, succeeded, untar};
use crate::{
    Case, CaseResult, Failure,
    case::{cases, failed},
};

/// The cases about files, users and secrets.
pub fn file_cases() -> Vec<Case<RuntimeFixture>> {
    cases![
        a_writable_bind_mount_belongs_to_the_caller,
        a_read_only_bind_mount_is_not_changed,
        a_single_file_can_be_mounted,
        a_tmpfs_has_its_size,
        a_writable_root_is_private,
        the_user_is_as_asked,
        the_default_user_is_not_root,
        kept_capabilities_are_kept_alone,
        a_seccomp_profile_is_in_force,
        secrets_are_files_and_nothing_else,
        copy_from_a_file_and_a_folder,
        copy_from_an_ended_container,
        copy_from_does_not_follow_links_out,
        copy_from_while_processes_write,
        copy_to_and_back,
        copy_to_does_not_escape,
        copy_to_a_full_disk,
    ]
}

async fn a_writable_bind_mount_belongs_to_the_caller(fx: Fx) -> CaseResult {
    let folder = fx.host_folder("work")?;
    let io = |error: std::io::Error| Failure::Failed(error.to_string());
    fs::write(folder.join("given"), "given").map_err(io)?;
    let request = fx
        .request()
        .with_mounts([Mount::bind(&folder, "/workspace").writable()]);
    let script = "cat /workspace/given && echo made > /workspace/made && mkdir -p /workspace/d/e && echo x > /workspace/d/e/f \
                  && echo more >> /workspace/given && mv /workspace/made /workspace/moved && rm -f /workspace/none";
    let (_, output) = fx.run(request, shell(script)).await?;
    succeeded(&output)?;
    assert_eq!(stdout(&output), "given");
    let own = fs::metadata(&folder).map_err(io)?;
    for name in ["moved", "d", "d/e", "d/e/f", "given"] {
        let made = fs::metadata(folder.join(name)).map_err(io)?;
        assert_eq!((made.uid(), made.gid()), (own.uid(), own.gid()), "the owner of {name}");
    }
    assert_eq!(fs::read_to_string(folder.join("given")).map_err(io)?, "givenmore\n");
    Ok(())
}

async fn a_read_only_bind_mount_is_not_changed(fx: Fx) -> CaseResult {
    let folder = fx.host_folder("given")?;
    let io = |error: std::io::Error| Failure::Failed(error.to_string());
    fs::write(folder.join("a"), "content").map_err(io)?;
    let container = fx
        .provision(fx.request().with_mounts([Mount::bind(&folder, "/given")]))
        .await?
        .handle;
    assert_eq!(stdout(&fx.sh(&container, "cat /given/a").await?), "content");
    for script in [
        "echo x > /given/a",
        "touch /given/b",
        "rm -f /given/a",
        "chmod 777 /given/a",
        "mkdir /given/d",
        "mount -o remount,rw /given",
    ] {
        let output = fx.sh(&container, script).await?;
        assert!(!output.exit.is_success(), "{script} worked");
    }
    assert_eq!(fs::read_to_string(folder.join("a")).map_err(io)?, "content");
    assert_eq!(fs::read_dir(&folder).map_err(io)?.count(), 1);
    Ok(())
}

async fn a_single_file_can_be_mounted(fx: Fx) -> CaseResult {
    let file = fx.host_folder("single")?.join("file");
    fs::write(&file, "content").map_err(|error| Failure::Failed(error.to_string()))?;
    let container = fx
        .provision(fx.request().with_mounts([Mount::bind(&file, "/etc/single.conf")]))
        .await;
    // The root is read-only, so a runtime may be unable to make a new mount point in it; but then it says so.
    let container = match container {
        Ok(verified) => verified.handle,
        Err(Failure::Failed(_)) => {
            let mounts = [Mount::bind(&file, "/single.conf")];
            fx.provision(fx.request().with_mounts(mounts)).await?.handle
        }
        Err(skipped) => return Err(skipped),
    };
    let output = fx
        .sh(&container, "cat /etc/single.conf 2>/dev/null || cat /single.conf")
        .await?;
    assert_eq!(stdout(&output), "content");
    Ok(())
}

async fn a_tmpfs_has_its_size(fx: Fx) -> CaseResult {
    let container = fx
        .provision(fx.request().with_mounts([Mount::tmpfs(4 * MIB, "/tmp")]))
        .await?
        .handle;
    succeeded(
        &fx.sh(&container, "dd if=/dev/zero of=/tmp/a bs=1048576 count=2 && rm /tmp/a")
            .await?,
    )?;
    let output = fx
        .sh(&container, "dd if=/dev/zero of=/tmp/a bs=1048576 count=8")
        .await?;
    assert!(!output.exit.is_success(), "8 MiB fit into 4");
    Ok(())
}

async fn a_writable_root_is_private(fx: Fx) -> CaseResult {
    fx.needs("writable_rootfs", |c| &c.writable_rootfs)?;
    let user = fx.capabilities().user.is_enforced().then_some(User { uid: 0, gid: 0 });
    let security = SecurityConfig::default().with_read_only_rootfs(false).with_user(user);
    let writable = || fx.request().with_security(security.clone());
    let one = fx.provision(writable()).await?.handle;
    let two = fx.provision(writable()).await?.handle;
    if fx.sh(&one, "echo x > /testkit-made").await?.exit.is_success() {
        assert!(
            !fx.sh(&two, "test -e /testkit-made").await?.exit.is_success(),
            "containers share their root"
        );
        assert!(!Path::new("/testkit-made").exists(), "the root is the host's");
    } else if user.is_some() {
        return failed("a writable root cannot be written to by root");
    }
    let three = fx.provision(writable()).await?.handle;
    assert!(
        !fx.sh(&three, "test -e /testkit-made").await?.exit.is_success(),
        "the image was changed"
    );
    Ok(())
}

async fn the_user_is_as_asked(fx: Fx) -> CaseResult {
    fx.needs("user", |c| &c.user)?;
    for (uid, gid) in [(1234, 2345), (65534, 65534)] {
        let security = SecurityConfig::default().with_user(Some(User { uid, gid }));
        let container = fx.provision(fx.request().with_security(security)).await?.handle;
        let ids = stdout(&fx.sh(&container, "id -u; id -g; id -G").await?);
        assert_eq!(ids, format!("{uid}\n{gid}\n{gid}\n"));
        succeeded(&fx.sh(&container, "touch /output/x").await?)?;
    }
    Ok(())
}

async fn the_default_user_is_not_root(fx: Fx) -> CaseResult {
    let container = fx.idle().await?;
    let uid = stdout(&fx.sh(&container, "id -u").await?);
    assert!(uid.trim().parse::<u32>().is_ok_and(|uid| uid > 0), "{uid:?}");
    Ok(())
}

async fn kept_capabilities_are_kept_alone(fx: Fx) -> CaseResult {
    fx.needs("add_capabilities", |c| &c.add_capabilities)?;
    let security = SecurityConfig::default().with_capabilities(vec!["CAP_NET_BIND_SERVICE".to_owned()]);
    let container = fx.provision(fx.request().with_security(security)).await?.handle;
    let status = stdout(&fx.sh(&container, "cat /proc/self/status").await?);
    let bits = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok())
    };
    for set in ["CapBnd:", "CapEff:", "CapPrm:"] {
        assert_eq!(bits(set), Some(1 << 10), "{set} {status}");
    }
    Ok(())
}

/// What a shell, the tools of busybox and a runtime's first process need, but for what makes folders.
const NEEDED_BY_A_SHELL: &str = "read write open openat close stat fstat lstat newfstatat statx poll ppoll lseek mmap \
    mprotect munmap brk rt_sigaction rt_sigprocmask rt_sigreturn rt_sigsuspend sigaltstack ioctl pread64 pwrite64 readv \
    writev access faccessat faccessat2 pipe pipe2 select pselect6 sched_yield sched_getaffinity mremap madvise dup dup2 \
    dup3 nanosleep clock_nanosleep clock_gettime clock_getres gettimeofday time times getpid getppid gettid getpgid \
    getpgrp getsid setpgid setsid getuid geteuid getgid getegid getgroups setuid setgid setgroups setresuid setresgid \
    setfsuid setfsgid getresuid getresgid capget capset prctl arch_prctl seccomp set_tid_address set_robust_list \
    get_robust_list rseq futex clone clone3 fork vfork execve execveat exit exit_group wait4 waitid kill tkill tgkill \
    uname fcntl flock fsync fdatasync ftruncate truncate getdents getdents64 getcwd chdir fchdir rename renameat \
    renameat2 unlink unlinkat rmdir link linkat symlink symlinkat readlink readlinkat chmod fchmod fchmodat umask \
    utime utimes utimensat futimesat getrlimit setrlimit prlimit64 getrusage sysinfo statfs fstatfs sendfile \
    copy_file_range epoll_create1 epoll_ctl epoll_wait epoll_pwait eventfd2 socketpair getrandom close_range \
    socket connect sendto recvfrom sendmsg recvmsg sendmmsg recvmmsg shutdown getsockopt setsockopt signalfd4 \
    rt_sigtimedwait rt_sigpending timerfd_create timerfd_settime pidfd_open pidfd_send_signal setitimer alarm pause \
    restart_syscall setrlimit getpriority setpriority mlock munlock splice tee";

async fn a_seccomp_profile_is_in_force(fx: Fx) -> CaseResult {
    fx.needs("seccomp_profile", |c| &c.seccomp_profile)?;
    let profile = fx.host_dir.join("profile.json");
    let names: Vec<_> = NEEDED_BY_A_SHELL.split_whitespace().collect();
    let allowed = serde_json::json!({ "names": names, "action": "SCMP_ACT_ALLOW" });
    let json = serde_json::json!({ "defaultAction": "SCMP_ACT_ERRNO", "syscalls": [allowed] });
    fs::write(&profile, json.to_string()).map_err(|error| Failure::Failed(error.to_string()))?;
    let security = SecurityConfig::default().with_seccomp_profile(Some(profile.clone()));
    let container = fx.provision(fx.request().with_security(security)).await?.handle;
    succeeded(
        &fx.sh(
            &container,
            "touch /output/x && ! mkdir /output/y && test ! -e /output/y",
        )
        .await?,
    )?;
    fs::write(&profile, "{\"defaultAction\": 7}").map_err(|error| Failure::Failed(error.to_string()))?;
    let security = SecurityConfig::default().with_seccomp_profile(Some(profile));
    let broken = fx.try_provision(fx.request().with_security(security)).await;
    assert_eq!(
        kind_of(broken),
        Some(ErrorKind::ConfigInvalid),
        "a profile that cannot be read"
    );
    Ok(())
}

async fn secrets_are_files_and_nothing_else(fx: Fx) -> CaseResult {
    let value = format!("secret-{}", SessionId::generate());
    let secret = |name: &str, value: &[u8]| Secret {
        name: name.to_owned(),
        value: SecretBytes::new(value),
    };
    let request = fx
        .request()
        .with_secrets([secret("token", value.as_bytes()), secret("binary", b"\0\xff\n")]);
    let container = fx.provision(request).await?.handle;
    assert_eq!(stdout(&fx.sh(&container, "cat /run/secrets/token").await?), value);
    assert_eq!(
        fx.sh(&container, "cat /run/secrets/binary").await?.stdout.head,
        b"\0\xff\n"
    );
    let mode = "stat -c '%a' /run/secrets/token; test $(stat -c %u /run/secrets/token) = $(id -u) && echo own";
    assert_eq!(stdout(&fx.sh(&container, mode).await?), "400\nown\n");
    let memory = "while read -r _ on type _; do case $on in /run|/run/secrets*) echo $type;; esac; done < /proc/mounts";
    let types = stdout(&fx.sh(&container, memory).await?);
    assert!(
        !types.is_empty() && types.lines().all(|kind| kind == "tmpfs" || kind == "ramfs"),
        "{types:?}"
    );
    let seen = stdout(
        &fx.sh(
            &container,
            "env; cat /proc/[0-9]*/environ /proc/[0-9]*/cmdline 2>/dev/null",
        )
        .await?,
    );
    assert!(
        !seen.contains(&value),
        "the secret is in an environment or a command line"
    );
    let inspected = format!("{:?}", fx.runtime.inspect(&container.id).await?);
    assert!(!inspected.contains(&value), "inspect shows the secret");
    let copied = fx.copy_from(&container, "/output").await?;
    assert_eq!(copied.len(), 1, "secrets must not be part of the output");
    Ok(())
}

async fn copy_from_a_file_and_a_folder(fx: Fx) -> CaseResult {
    let container = fx.idle().await?;
    let script = "cd /output && mkdir -p d/e empty && echo a > a && printf '\\377\\0' > d/e/b && ln -s /etc/passwd link && : > zero";
    succeeded(&fx.sh(&container, script).await?)?;
    let file = fx.copy_from(&container, "/output/a").await?;
    assert_eq!(file, [("a".to_owned(), Some(b"a\n".to_vec()))].into());
    let folder = fx.copy_from(&container, "/output").await?;
    let names: Vec<_> = folder.keys().map(String::as_str).collect();
    let expected = [
        "output",
        "output/a",
        "output/d",
        "output/d/e",
        "output/d/e/b",
        "output/empty",
        "output/link",
        "output/zero",
    ];
    assert_eq!(names, expected);
    assert_eq!(folder["output/d/e/b"], Some(b"\xff\0".to_vec()));
    assert_eq!(folder["output/link"], None, "a link must come as a link");
    let inner = fx.copy_from(&container, "/output/d").await?;
    assert_eq!(
        inner.keys().map(String::as_str).collect::<Vec<_>>(),
        ["d", "d/e", "d/e/b"]
    );
    for missing in ["/output/none", "/none", "/output/a/b"] {
        let copied = fx
            .runtime
            .copy_from(CopyFromRequest::new(container.clone(), missing))
            .await;
        assert_eq!(kind_of(copied), Some(ErrorKind::NotFound), "{missing}");
    }
    for bad in ["output", "", "/output/../output"] {
        let copied = fx.runtime.copy_from(CopyFromRequest::new(container.clone(), bad)).await;
        assert_eq!(kind_of(copied), Some(ErrorKind::ConfigInvalid), "{bad:?}");
    }
    Ok(())
}

async fn copy_from_an_ended_container(fx: Fx) -> CaseResult {
    fx.needs("main_process", |c| &c.main_process)?;
    let (container, output) = fx.run(fx.request(), shell("echo result > /output/r; exit 1")).await?;
    assert_eq!(output.exit, exited(1));
    assert_eq!(fx.read_file(&container, "/output/r").await?, b"result\n");
    assert!(
        fx.runtime.stats(&container).await.is_ok(),
        "stats of an ended container"
    );
    Ok(())
}

async fn copy_from_does_not_follow_links_out(fx: Fx) -> CaseResult {
    let folder = fx.host_folder("outside")?;
    fs::write(folder.join("secret"), "the host's secret").map_err(|error| Failure::Failed(error.to_string()))?;
    let container = fx.idle().await?;
    let script = format!(
        "ln -s '{0}' /output/folder; ln -s '{0}/secret' /output/file; ln -s ../../../../../../../..{0} /output/up",
        folder.display()
    );
    succeeded(&fx.sh(&container, &script).await?)?;
    for path in [
        "/output",
        "/output/file",
        "/output/folder",
        "/output/folder/secret",
        "/output/up",
        "/output/up/secret",
    ] {
        let request = CopyFromRequest::new(container.clone(), path);
        let Ok(copied) = fx.runtime.copy_from(request).await else {
            continue;
        };
        let chunks: Vec<_> = copied.collect().await;
        let bytes: Vec<u8> = chunks.into_iter().flatten().flatten().collect();
        let leaked = bytes.windows(17).any(|window| window == b"the host's secret");
        assert!(!leaked, "{path} gave a file of the host");
    }
    Ok(())
}

async fn copy_from_while_processes_write(fx: Fx) -> CaseResult {
    fx.needs("quiesce", |c| &c.quiesce)?;
    let container = fx.idle().await?;
    let script = "echo ready; i=0; while :; do i=$((i+1)); echo $i > /output/a; echo $i > /output/b; done";
    let mut session = fx
        .runtime
        .exec(ExecRequest::new(container.clone(), shell(script)))
        .await?;
    first_line(&mut session).await?;
    let number = |files: &BTreeMap<String, Option<Vec<u8>>>, name: &str| -> i64 {
        let content = files.get(name).cloned().flatten().unwrap_or_default();
        String::from_utf8_lossy(&content).trim().parse().unwrap_or(-1)
    };
    let mut seen = BTreeSet::new();
    for _ in 0..10 {
        let request = CopyFromRequest::new(container.clone(), "/output").with_quiesce(true);
        let chunks: Vec<Bytes> = fx.runtime.copy_from(request).await?.try_collect().await?;
        let files = untar(&chunks.concat())?;
        let (a, b) = (number(&files, "output/a"), number(&files, "output/b"));
        // A shell truncates before it writes, so a file may be empty; but the two are never further apart than one step.
        assert!(
            a < 0 || b < 0 || a == b || a == b + 1,
            "{a} and {b} were not read at one time"
        );
        seen.insert(a.max(b));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(seen.len() > 3, "the process did not go on: {seen:?}");
    Ok(())
}

async fn copy_to_and_back(fx: Fx) -> CaseResult {
    let container = fx.idle().await?;
    let big: Vec<u8> = (0..3_000_000_u32).map(|i| (i ^ (i >> 8)) as u8).collect();
    let given = archive(&[
        ("a", Some(b"content"), 0o644),
        ("d/", None, 0o755),
        ("d/run", Some(b"#!/bin/sh\necho ran\n"), 0o755),
        ("d/big", Some(&big), 0o600),
        ("deep/er/x", Some(b"x"), 0o644),
    ]);
    let chunks: Vec<_> = given.chunks(10_007).map(Bytes::copy_from_slice).map(Ok).collect();
    let request = CopyToRequest::new(container.clone(), "/output", stream::iter(chunks).boxed());
    fx.runtime.copy_to(request).await?;
    assert_eq!(
        stdout(
            &fx.sh(&container, "cat /output/a; /output/d/run; cat /output/deep/er/x")
                .await?
        ),
        "contentran\nx"
    );
    assert!(fx.read_file(&container, "/output/d/big").await? == big);
    let own = "test $(stat -c %u /output/d/run) = $(id -u) && rm -r /output/d /output/a && test ! -e /output/a";
    succeeded(&fx.sh(&container, own).await?)?;
    for missing in ["/output/none", "/none"] {
        let request = CopyToRequest::new(container.clone(), missing, once(archive(&[("a", Some(b"x"), 0o644)])));
        assert_eq!(
            kind_of(fx.runtime.copy_to(request).await),
            Some(ErrorKind::NotFound),
            "{missing}"
        );
    }
    Ok(())
}

async fn copy_to_does_not_escape(fx: Fx) -> CaseResult {
    let outside = fx.host_folder("escape")?;
    let container = fx.idle().await?;
    let script = format!(
        "cd /output && mkdir in && ln -s '{0}' link && ln -s ../../../../../../../..{0} up && ln -s /etc etc && ln -s '{0}/new' new",
        outside.display()
    );
    succeeded(&fx.sh(&container, &script).await?)?;
    let up = format!("../../../../../../../..{}/evil", outside.display());
    let absolute = format!("{}/evil", outside.display());
    for name in [
        "link/evil",
        "up/evil",
        "new",
        "../evil",
        "in/../../evil",
        up.as_str(),
        absolute.as_str(),
    ] {
        for path in ["/output", "/output/in", "/output/link", "/output/up"] {
            let request = CopyToRequest::new(container.clone(), path, once(archive(&[(name, Some(b"evil"), 0o644)])));
            // It may be refused or put where it does no harm.
            let _ = fx.runtime.copy_to(request).await;
        }
    }
    let mut left = fs::read_dir(&outside).map_err(|error| Failure::Failed(error.to_string()))?;
    assert!(left.next().is_none(), "something was written on the host");
    for path in ["/evil", "/etc/evil"] {
        assert!(!Path::new(path).exists(), "{path} was written on the host");
    }
    let denied = archive(&[("x", Some(b"evil"), 0o644)]);
    let request = CopyToRequest::new(container.clone(), "/etc", once(denied));
    let written = fx.runtime.copy_to(request).await;
    assert!(
        written.is_err(),
        "the root is read-only, and something was written to /etc"
    );
    Ok(())
}

async fn copy_to_a_full_disk(fx: Fx) -> CaseResult {
    let limits = ResourceLimits::none().with_disk_bytes(Some(8 * MIB));
    let container = fx.provision(fx.request().with_resources(limits)).await?.handle;
    let request = CopyToRequest::new(
        container.clone(),
        "/output",
        once(archive(&[("a", Some(&[1; 32 << 20]), 0o644)])),
    );
    assert_eq!(
        kind_of(fx.runtime.copy_to(request).await),
        Some(ErrorKind::ResourceExhausted)
    );
    succeeded(&fx.sh(&container, "rm -f /output/a; echo x > /output/b").await?)
}
