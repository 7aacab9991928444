//! The profile in the interpreter, call by call.

use super::*;

fn verdict(call: libc::c_long, args: [u64; 6]) -> u32 {
    evaluate(&profile(), &Data::call(call, args)).unwrap()
}

fn with(call: libc::c_long, args: &[u64]) -> u32 {
    let mut all = [0; 6];
    all[..args.len()].copy_from_slice(args);
    verdict(call, all)
}

#[test]
fn every_call_of_a_checkpoint_passes() {
    for call in [
        libc::SYS_mmap,
        libc::SYS_munmap,
        libc::SYS_mprotect,
        libc::SYS_mremap,
        libc::SYS_madvise,
        libc::SYS_brk,
        libc::SYS_prctl,
        libc::SYS_arch_prctl,
        libc::SYS_rt_sigaction,
        libc::SYS_rt_sigprocmask,
        libc::SYS_rt_sigreturn,
        libc::SYS_rt_sigqueueinfo,
        libc::SYS_rt_tgsigqueueinfo,
        libc::SYS_sigaltstack,
        libc::SYS_tgkill,
        libc::SYS_gettid,
        libc::SYS_getsid,
        libc::SYS_getpgid,
        libc::SYS_setpgid,
        libc::SYS_setsid,
        libc::SYS_timer_create,
        libc::SYS_timer_settime,
        libc::SYS_timer_gettime,
        libc::SYS_timer_getoverrun,
        libc::SYS_timer_delete,
        libc::SYS_getitimer,
        libc::SYS_setitimer,
        libc::SYS_timerfd_settime,
        libc::SYS_recvmsg,
        libc::SYS_sendmsg,
        libc::SYS_socketpair,
        libc::SYS_dup3,
        libc::SYS_close,
        libc::SYS_close_range,
        libc::SYS_fcntl,
        libc::SYS_ioctl,
        libc::SYS_futex,
        libc::SYS_set_robust_list,
        libc::SYS_get_robust_list,
        libc::SYS_set_tid_address,
        libc::SYS_rseq,
        libc::SYS_membarrier,
        libc::SYS_sched_setattr,
        libc::SYS_sched_setaffinity,
        libc::SYS_prlimit64,
        libc::SYS_setrlimit,
        libc::SYS_personality,
        libc::SYS_umask,
        libc::SYS_chdir,
        libc::SYS_chroot,
        libc::SYS_capset,
        libc::SYS_setresuid,
        libc::SYS_setresgid,
        libc::SYS_setgroups,
        libc::SYS_seccomp,
        libc::SYS_wait4,
        libc::SYS_exit_group,
        libc::SYS_epoll_ctl,
        libc::SYS_shmat,
        libc::SYS_shmdt,
        libc::SYS_semop,
        libc::SYS_ptrace,
        libc::SYS_execve,
    ] {
        assert_eq!(verdict(call, [u64::MAX; 6]), ALLOW, "call {call}");
    }
}

#[test]
fn what_opens_the_walls_is_refused() {
    for call in REFUSED {
        assert_eq!(verdict(*call, [0; 6]), errno(libc::EPERM), "call {call}");
    }
    assert_eq!(with(libc::SYS_unshare, &[0x1000_0000]), errno(libc::EPERM));
    assert_eq!(with(libc::SYS_unshare, &[0x80]), errno(libc::EPERM));
    assert_eq!(with(libc::SYS_unshare, &[libc::CLONE_FS as u64]), ALLOW);
    assert_eq!(with(libc::SYS_clone, &[libc::CLONE_NEWUSER as u64 | 17]), errno(libc::EPERM));
    assert_eq!(with(libc::SYS_clone, &[libc::CLONE_NEWNS as u64 | 17]), errno(libc::EPERM));
    assert_eq!(with(libc::SYS_clone, &[0x0120_0011]), ALLOW); // fork
    assert_eq!(with(libc::SYS_clone, &[0x003d_0f00]), ALLOW); // pthread_create
}

#[test]
fn what_cannot_be_carried_is_absent() {
    for call in ABSENT {
        assert_eq!(verdict(*call, [0; 6]), errno(libc::ENOSYS), "call {call}");
    }
    for domain in [libc::AF_INET, libc::AF_INET6] {
        let d = domain.cast_unsigned().into();
        assert_eq!(with(libc::SYS_socket, &[d, 1, 262]), errno(libc::EPROTONOSUPPORT));
        assert_eq!(with(libc::SYS_socket, &[d, 1, 6]), ALLOW);
        assert_eq!(with(libc::SYS_socket, &[d, 1, 0]), ALLOW);
    }
    assert_eq!(with(libc::SYS_socket, &[38, 5, 0]), errno(libc::EAFNOSUPPORT));
    assert_eq!(with(libc::SYS_socket, &[40, 1, 0]), errno(libc::EAFNOSUPPORT));
    assert_eq!(with(libc::SYS_socket, &[1, 1, 0]), ALLOW);
    assert_eq!(with(libc::SYS_socket, &[16, 3, 262]), ALLOW); // netlink has protocols of its own
    assert_eq!(with(libc::SYS_userfaultfd, &[0]), errno(libc::EPERM));
    assert_eq!(with(libc::SYS_userfaultfd, &[0x80801]), ALLOW);
}

#[test]
fn other_worlds_are_absent() {
    let p = profile();
    let i386 = Data { arch: 0x4000_0003, ..Data::call(libc::SYS_getpid, [0; 6]) };
    assert_eq!(evaluate(&p, &i386).unwrap(), errno(libc::ENOSYS));
    let x32 = Data::call(0x4000_0000 | libc::SYS_getpid, [0; 6]);
    assert_eq!(evaluate(&p, &x32).unwrap(), errno(libc::ENOSYS));
    assert_eq!(verdict(libc::c_long::from(NEWEST) + 1, [0; 6]), errno(libc::ENOSYS));
    assert_eq!(verdict(libc::c_long::from(NEWEST), [0; 6]), ALLOW);
}

#[test]
fn the_bytes_are_stable_and_whole() {
    assert_eq!(bytes(), bytes());
    assert_eq!(bytes().len(), profile().len() * 8);
    assert!(profile().len() <= 4096);
    // Each jump lands inside.
    for (i, f) in profile().iter().enumerate() {
        if f.code & 7 == 5 {
            assert!(i + 1 + usize::from(f.jt.max(f.jf)) < profile().len(), "instruction {i}");
        }
    }
}
