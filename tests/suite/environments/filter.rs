//! Seccomp filters as a container runtime or an old kernel would have them, as bytes for `bwrap --seccomp`.

use libc::{BPF_ABS, BPF_JEQ, BPF_JMP, BPF_JSET, BPF_K, BPF_LD, BPF_RET, BPF_W};
use libc::{ENOSYS, EPERM, SECCOMP_RET_ALLOW, SECCOMP_RET_ERRNO};

/// One instruction (`struct sock_filter`), as the kernel reads it.
fn instruction(code: u32, yes: u8, no: u8, value: u32) -> Vec<u8> {
    let mut bytes = u16::try_from(code).unwrap().to_ne_bytes().to_vec();
    bytes.extend([yes, no]);
    bytes.extend(value.to_ne_bytes());
    bytes
}

fn load(offset: u32) -> Vec<u8> {
    instruction(BPF_LD | BPF_W | BPF_ABS, 0, 0, offset)
}

fn answer(errno: i32) -> Vec<u8> {
    instruction(BPF_RET | BPF_K, 0, 0, SECCOMP_RET_ERRNO | errno.cast_unsigned())
}

/// Allows everything but these.
fn refuse(calls: &[(libc::c_long, i32)]) -> Vec<u8> {
    let mut program = load(0);
    for &(call, errno) in calls {
        program.extend(instruction(BPF_JMP | BPF_JEQ | BPF_K, 0, 1, u32::try_from(call).unwrap()));
        program.extend(answer(errno));
    }
    program
}

/// A kernel without Landlock.
pub fn no_landlock() -> Vec<u8> {
    let calls = [libc::SYS_landlock_create_ruleset, libc::SYS_landlock_add_rule, libc::SYS_landlock_restrict_self];
    let mut program = refuse(&calls.map(|call| (call, ENOSYS)));
    program.extend(instruction(BPF_RET | BPF_K, 0, 0, SECCOMP_RET_ALLOW));
    program
}

/// What Docker's default profile refuses to a container without CAP_SYS_ADMIN and the like (moby/moby,
/// profiles/seccomp/default.json): it answers EPERM for everything that it does not list.
const DOCKER: [libc::c_long; 56] = [
    // Namespaces and mounts.
    libc::SYS_unshare,
    libc::SYS_setns,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fspick,
    libc::SYS_fsmount,
    libc::SYS_open_tree,
    libc::SYS_move_mount,
    libc::SYS_mount_setattr,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    // Files.
    libc::SYS_fanotify_init,
    libc::SYS_open_by_handle_at,
    libc::SYS_quotactl,
    libc::SYS_quotactl_fd,
    libc::SYS_lookup_dcookie,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_acct,
    libc::SYS_nfsservctl,
    libc::SYS_vhangup,
    // Other processes.
    libc::SYS_pidfd_getfd,
    libc::SYS_process_madvise,
    libc::SYS_kcmp,
    libc::SYS_move_pages,
    libc::SYS_migrate_pages,
    libc::SYS_get_mempolicy,
    libc::SYS_set_mempolicy,
    libc::SYS_set_mempolicy_home_node,
    libc::SYS_mbind,
    // Keys, the kernel, its clocks.
    libc::SYS_keyctl,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_syslog,
    libc::SYS_reboot,
    libc::SYS_kexec_load,
    libc::SYS_kexec_file_load,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_clock_settime,
    libc::SYS_settimeofday,
    // Only x86 has these; elsewhere the numbers are others' and are repeated.
    X86[0],
    X86[1],
    X86[2],
    X86[3],
    X86[4],
    // The profile lists these since the releases of 2023 no more.
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
];

#[cfg(target_arch = "x86_64")]
const X86: [libc::c_long; 5] = [libc::SYS_iopl, libc::SYS_ioperm, libc::SYS_ustat, libc::SYS_sysfs, libc::SYS_uselib];
#[cfg(not(target_arch = "x86_64"))]
const X86: [libc::c_long; 5] = [libc::SYS_unshare; 5];

/// CLONE_NEW* as the profile masks them.
const NAMESPACES: u32 = 0x7e02_0000;

/// The modes of personality(2) that it allows; the last one only asks.
const PERSONALITIES: [u32; 5] = [0, 0x8, 0x2_0000, 0x2_0008, 0xffff_ffff];

/// Docker's default profile, as far as a launcher or an agent would notice. Landlock and seccomp are allowed; `clone3` is
/// as if it were not there, so that the C library falls back to `clone`, whose flags can be looked at.
pub fn docker() -> Vec<u8> {
    let mut calls = DOCKER.map(|call| (call, EPERM)).to_vec();
    calls.push((libc::SYS_clone3, ENOSYS));
    let mut program = refuse(&calls);
    program.extend(first_argument(
        libc::SYS_clone,
        &[instruction(BPF_JMP | BPF_JSET | BPF_K, 0, 1, NAMESPACES), answer(EPERM)],
    ));
    program.extend(first_argument(
        libc::SYS_socket,
        &[instruction(BPF_JMP | BPF_JEQ | BPF_K, 0, 1, libc::AF_VSOCK.cast_unsigned()), answer(EPERM)],
    ));
    let allowed = PERSONALITIES.map(|mode| {
        [instruction(BPF_JMP | BPF_JEQ | BPF_K, 0, 1, mode), instruction(BPF_RET | BPF_K, 0, 0, SECCOMP_RET_ALLOW)]
    });
    program.extend(first_argument(libc::SYS_personality, &[&allowed.concat()[..], &[answer(EPERM)]].concat()));
    program.extend(instruction(BPF_RET | BPF_K, 0, 0, SECCOMP_RET_ALLOW));
    program
}

/// Instructions that look at the lower half of a call's first argument, and are stepped over for every other call.
fn first_argument(call: libc::c_long, body: &[Vec<u8>]) -> Vec<u8> {
    let mut program = load(0);
    let skipped = u8::try_from(body.len() + 1).unwrap();
    program.extend(instruction(BPF_JMP | BPF_JEQ | BPF_K, 0, skipped, u32::try_from(call).unwrap()));
    program.extend(load(16));
    program.extend(body.concat());
    program
}
