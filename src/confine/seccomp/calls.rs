//! The system calls of the filter, by what is done with them.
#![forbid(unsafe_code)]

/// Of no use to an agent: each has been a way out of a sandbox, or is for machines' owners.
pub(super) const NEVER: &[libc::c_long] = &[
    libc::SYS_acct,
    libc::SYS_add_key,
    libc::SYS_adjtimex,
    libc::SYS_bpf,
    libc::SYS_clock_adjtime,
    libc::SYS_clock_settime,
    libc::SYS_delete_module,
    libc::SYS_fanotify_init,
    libc::SYS_finit_module,
    libc::SYS_init_module,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_io_uring_setup,
    libc::SYS_kcmp,
    libc::SYS_kexec_file_load,
    libc::SYS_kexec_load,
    libc::SYS_keyctl,
    libc::SYS_lookup_dcookie,
    libc::SYS_migrate_pages,
    libc::SYS_move_pages,
    libc::SYS_nfsservctl,
    libc::SYS_open_by_handle_at,
    libc::SYS_perf_event_open,
    libc::SYS_pidfd_getfd,
    libc::SYS_process_madvise,
    libc::SYS_quotactl,
    libc::SYS_quotactl_fd,
    libc::SYS_reboot,
    libc::SYS_request_key,
    libc::SYS_setdomainname,
    libc::SYS_sethostname,
    libc::SYS_setns,
    libc::SYS_settimeofday,
    libc::SYS_swapoff,
    libc::SYS_swapon,
    libc::SYS_syslog,
    libc::SYS_userfaultfd,
    libc::SYS_vhangup,
];

#[cfg(target_arch = "x86_64")]
pub(super) const NEVER_HERE: &[libc::c_long] = &[
    libc::SYS__sysctl,
    libc::SYS_ioperm,
    libc::SYS_iopl,
    libc::SYS_modify_ldt,
    libc::SYS_sysfs,
    libc::SYS_uselib,
    libc::SYS_ustat,
];
#[cfg(target_arch = "aarch64")]
pub(super) const NEVER_HERE: &[libc::c_long] = &[];

/// Newer than the C library's list; calls from 424 on have one number on every machine.
pub(super) const FCHMODAT2: libc::c_long = 452;
pub(super) const SETXATTRAT: libc::c_long = 463;
pub(super) const REMOVEXATTRAT: libc::c_long = 466;
pub(super) const OPEN_TREE_ATTR: libc::c_long = 467;
pub(super) const FILE_SETATTR: libc::c_long = 469;

pub(super) const MOUNTS: &[libc::c_long] = &[
    libc::SYS_chroot,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fsopen,
    libc::SYS_fspick,
    libc::SYS_mount,
    libc::SYS_mount_setattr,
    libc::SYS_move_mount,
    libc::SYS_open_tree,
    OPEN_TREE_ATTR,
    libc::SYS_pivot_root,
    libc::SYS_umount2,
];

pub(super) const IPC: &[libc::c_long] = &[
    libc::SYS_mq_getsetattr,
    libc::SYS_mq_notify,
    libc::SYS_mq_open,
    libc::SYS_mq_timedreceive,
    libc::SYS_mq_timedsend,
    libc::SYS_mq_unlink,
    libc::SYS_msgctl,
    libc::SYS_msgget,
    libc::SYS_msgrcv,
    libc::SYS_msgsnd,
    libc::SYS_semctl,
    libc::SYS_semget,
    libc::SYS_semop,
    libc::SYS_semtimedop,
    libc::SYS_shmat,
    libc::SYS_shmctl,
    libc::SYS_shmdt,
    libc::SYS_shmget,
];

pub(super) const TRACING: &[libc::c_long] =
    &[libc::SYS_process_vm_readv, libc::SYS_process_vm_writev, libc::SYS_ptrace];

/// Calls that name another process in this argument; 0 stands for the caller itself.
pub(super) const OTHERS: &[(libc::c_long, u32)] = &[
    (libc::SYS_prlimit64, 0),
    (libc::SYS_sched_setaffinity, 0),
    (libc::SYS_sched_setattr, 0),
    (libc::SYS_sched_setparam, 0),
    (libc::SYS_sched_setscheduler, 0),
];

/// The same, of a process, a process group or a user by the first argument. The 0 of a user stands for every process
/// that has the caller's UID, whichever cell it is in.
pub(super) const OTHERS_BY_KIND: &[(libc::c_long, u32)] =
    &[(libc::SYS_setpriority, libc::PRIO_USER), (libc::SYS_ioprio_set, IOPRIO_WHO_USER)];
/// ioprio_set(2).
pub(super) const IOPRIO_WHO_USER: u32 = 3;

/// Changes of modes, owners and times, which Landlock has no right for. The launcher makes them, see
/// [`crate::run::supervise::modes`].
pub(super) const MODES: &[libc::c_long] =
    &[libc::SYS_fchmod, libc::SYS_fchmodat, FCHMODAT2, libc::SYS_fchown, libc::SYS_fchownat, libc::SYS_utimensat];
#[cfg(target_arch = "x86_64")]
pub(super) const MODES_HERE: &[libc::c_long] =
    &[libc::SYS_chmod, libc::SYS_chown, libc::SYS_lchown, libc::SYS_utime, libc::SYS_utimes];
#[cfg(not(target_arch = "x86_64"))]
pub(super) const MODES_HERE: &[libc::c_long] = &[];

/// All that the launcher is asked about.
pub const ASKED: [&[libc::c_long]; 2] = [MODES, MODES_HERE];

/// Changes of attributes, for which Landlock has no right either. Programs that copy attributes do without them where a
/// file system says that it has none (EOPNOTSUPP), and report EPERM as a failure.
pub(super) const ATTRIBUTES: &[libc::c_long] = &[
    libc::SYS_setxattr,
    libc::SYS_lsetxattr,
    libc::SYS_fsetxattr,
    SETXATTRAT,
    libc::SYS_removexattr,
    libc::SYS_lremovexattr,
    libc::SYS_fremovexattr,
    REMOVEXATTRAT,
    FILE_SETATTR,
];

/// Their ioctl(2) twins, which an owner may ask of a file that he has open for reading: FS_IOC_SETFLAGS, for 32 bits
/// too, FS_IOC_SETVERSION, FS_IOC_FSSETXATTR, FS_IOC_ENABLE_VERITY, FS_IOC_SET_ENCRYPTION_POLICY,
/// BTRFS_IOC_SUBVOL_SETFLAGS.
pub(super) const FLAGS: [u32; 7] =
    [0x4008_6602, 0x4004_6602, 0x4008_7602, 0x401c_5820, 0x4080_6685, 0x800c_6613, 0x4008_941a];

/// FIOSETOWN and SIOCSPGRP: F_SETOWN of fcntl(2) by another door.
pub(super) const SET_OWNER: [u32; 2] = [0x8901, 0x8902];

/// fcntl(2): F_SETLEASE, F_SETDELEG, F_NOTIFY, F_SETSIG, F_SETOWN_EX.
pub(super) const F_SETLEASE: u32 = 1024;
pub(super) const F_SETDELEG: u32 = 1040;
pub(super) const F_NOTIFY: u32 = 1026;
pub(super) const F_SETSIG: u32 = 10;
pub(super) const F_SETOWN_EX: u32 = 15;
