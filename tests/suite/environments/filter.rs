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

/// What Docker's default profile refuses to a container without CAP_SYS_ADMIN, as far as a launcher would ask for it
/// (moby/profiles, seccomp/default.json): no namespace, no mount, `clone3` as if it were not there.
pub fn docker() -> Vec<u8> {
    let refused = [
        libc::SYS_unshare,
        libc::SYS_setns,
        libc::SYS_mount,
        libc::SYS_umount2,
        libc::SYS_pivot_root,
        libc::SYS_fsopen,
        libc::SYS_fsmount,
        libc::SYS_open_tree,
        libc::SYS_move_mount,
        libc::SYS_mount_setattr,
        libc::SYS_bpf,
        libc::SYS_perf_event_open,
        libc::SYS_keyctl,
        libc::SYS_add_key,
        libc::SYS_userfaultfd,
        libc::SYS_io_uring_setup,
        libc::SYS_pidfd_getfd,
    ];
    let mut calls = refused.map(|call| (call, EPERM)).to_vec();
    calls.push((libc::SYS_clone3, ENOSYS));
    let mut program = refuse(&calls);
    // The flags of clone are its first argument; CLONE_NEW* as in the profile.
    program.extend(instruction(BPF_JMP | BPF_JEQ | BPF_K, 0, 3, u32::try_from(libc::SYS_clone).unwrap()));
    program.extend(load(16));
    program.extend(instruction(BPF_JMP | BPF_JSET | BPF_K, 0, 1, 0x7e02_0000));
    program.extend(answer(EPERM));
    program.extend(instruction(BPF_RET | BPF_K, 0, 0, SECCOMP_RET_ALLOW));
    program
}
