//! The seccomp filter. A companion to the other layers, never a wall: it takes away system calls that no agent needs
//! and that have led out of sandboxes, and closes what Landlock's TCP rules leave open.
#![forbid(unsafe_code)]

use crate::plan::rules::Filter;
use crate::sys::seccomp::Instruction;

type Block = Vec<Instruction>;

// Classic BPF (linux/bpf_common.h) and the layout of seccomp_data (seccomp(2)).
const LOAD: u16 = 0x20;
const AND: u16 = 0x54;
const JUMP: u16 = 0x05;
const IF_EQUAL: u16 = 0x15;
const IF_AT_LEAST: u16 = 0x35;
const RETURN: u16 = 0x06;
const NUMBER: u32 = 0;
const ARCH: u32 = 4;

/// The low half of an argument: all that is compared here is an `int`, and both machines are little-endian.
const fn argument(index: u32) -> u32 {
    16 + 8 * index
}

const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;

#[cfg(target_arch = "x86_64")]
const AUDIT_ARCH: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const AUDIT_ARCH: u32 = 0xc000_00b7;

/// CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET (clone(2)); NEWTIME is unshare(2)'s alone.
const NEW_NAMESPACES: u32 = 0x7e02_0000;
const NEW_TIME: u32 = 0x80;

/// Of no use to an agent: each has been a way out of a sandbox, or is for machines' owners.
const NEVER: &[libc::c_long] = &[
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
const NEVER_HERE: &[libc::c_long] = &[
    libc::SYS__sysctl,
    libc::SYS_ioperm,
    libc::SYS_iopl,
    libc::SYS_modify_ldt,
    libc::SYS_sysfs,
    libc::SYS_uselib,
    libc::SYS_ustat,
];
#[cfg(target_arch = "aarch64")]
const NEVER_HERE: &[libc::c_long] = &[];

const MOUNTS: &[libc::c_long] = &[
    libc::SYS_chroot,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fsopen,
    libc::SYS_fspick,
    libc::SYS_mount,
    libc::SYS_mount_setattr,
    libc::SYS_move_mount,
    libc::SYS_open_tree,
    libc::SYS_pivot_root,
    libc::SYS_umount2,
];

const IPC: &[libc::c_long] = &[
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

const TRACING: &[libc::c_long] = &[libc::SYS_process_vm_readv, libc::SYS_process_vm_writev, libc::SYS_ptrace];

/// Calls that name another process in this argument; 0 stands for the caller itself.
const OTHERS: &[(libc::c_long, u32)] = &[
    (libc::SYS_prlimit64, 0),
    (libc::SYS_sched_setaffinity, 0),
    (libc::SYS_sched_setattr, 0),
    (libc::SYS_sched_setparam, 0),
    (libc::SYS_sched_setscheduler, 0),
    (libc::SYS_setpriority, 1),
    (libc::SYS_ioprio_set, 1),
];

/// Compiles the filter. The kernel walks it once for each system call number when it is loaded, so it is a balanced
/// tree: a list of as many comparisons takes twice as long to load.
pub fn compile(filter: &Filter) -> Vec<Instruction> {
    let mut rules = rules(filter);
    rules.sort_by_key(|(number, _)| *number);
    rules.dedup_by_key(|(number, _)| *number);
    let mut program = Vec::with_capacity(8 * rules.len());
    program.push(load(ARCH));
    // Another instruction set has other numbers: `int 0x80` would walk around every rule.
    program.extend(when(IF_EQUAL, AUDIT_ARCH, Vec::new(), vec![ret(libc::SECCOMP_RET_KILL_PROCESS)]));
    program.push(load(NUMBER));
    #[cfg(target_arch = "x86_64")]
    program.extend(when(IF_AT_LEAST, 0x4000_0000, vec![errno(libc::ENOSYS)], Vec::new()));
    tree(&rules, &mut program);
    program
}

fn rules(filter: &Filter) -> Vec<(u32, Block)> {
    let mut rules: Vec<(u32, Block)> = Vec::new();
    let mut add = |number: libc::c_long, block: Block| rules.push((number as u32, block));
    let mut deny = |numbers: &[libc::c_long]| numbers.iter().for_each(|&number| add(number, vec![errno(libc::EPERM)]));
    deny(NEVER);
    deny(NEVER_HERE);
    if !filter.namespaces {
        deny(MOUNTS);
    }
    if !filter.ipc {
        deny(IPC);
    }
    if !filter.ptrace {
        deny(TRACING);
    }
    if !filter.namespaces {
        // clone3's flags are in memory, out of a filter's sight; ENOSYS makes the C library fall back to clone, and
        // EPERM would abort it.
        add(libc::SYS_clone3, vec![errno(libc::ENOSYS)]);
        add(libc::SYS_clone, unless_clear(0, NEW_NAMESPACES));
        add(libc::SYS_unshare, unless_clear(0, NEW_NAMESPACES | NEW_TIME));
    }
    if !filter.others {
        OTHERS.iter().for_each(|&(number, index)| add(number, only_self(index)));
        add(libc::SYS_kill, one_of(0, &[(u32::MAX, libc::EPERM)]));
    }
    // The input queue of a terminal is the shell's that gets it back (CVE-2016-2568, CVE-2023-28339).
    let terminal = [libc::TIOCSTI as u32, libc::TIOCLINUX as u32, libc::TIOCSETD as u32, libc::TIOCCONS as u32];
    add(libc::SYS_ioctl, one_of(1, &terminal.map(|request| (request, libc::EPERM))));
    add(libc::SYS_personality, personality());
    add(libc::SYS_socket, socket(filter));
    if !filter.listen {
        add(libc::SYS_listen, vec![errno(libc::EPERM)]);
    }
    // A first write with the connection goes round Landlock's rule for connect.
    let fast = libc::MSG_FASTOPEN as u32;
    add(libc::SYS_sendto, unless_clear(3, fast));
    add(libc::SYS_sendmsg, unless_clear(2, fast));
    add(libc::SYS_sendmmsg, unless_clear(3, fast));
    rules
}

/// Unix, route (name resolution asks it for addresses), and plain TCP and UDP. MPTCP goes round Landlock's rules, and
/// the exotic families are a store of kernel bugs.
fn socket(filter: &Filter) -> Block {
    let no_family = errno(libc::EAFNOSUPPORT);
    let no_protocol = errno(libc::EPROTONOSUPPORT);
    let protocols = |known: &[i32]| {
        let mut block = vec![load(argument(2))];
        known.iter().for_each(|&protocol| block.extend(when(IF_EQUAL, protocol as u32, vec![ret(ALLOW)], Vec::new())));
        block.push(no_protocol);
        block
    };
    let mut internet = vec![load(argument(1)), instruction(AND, 0xf)];
    internet.extend(when(IF_EQUAL, libc::SOCK_STREAM as u32, protocols(&[0, libc::IPPROTO_TCP]), Vec::new()));
    if filter.udp {
        internet.extend(when(IF_EQUAL, libc::SOCK_DGRAM as u32, protocols(&[0, libc::IPPROTO_UDP]), Vec::new()));
    }
    internet.push(no_protocol);
    let mut block = vec![load(argument(0))];
    block.extend(when(IF_EQUAL, libc::AF_UNIX as u32, vec![ret(ALLOW)], Vec::new()));
    if filter.inet {
        block.extend(when(IF_EQUAL, libc::AF_INET as u32, internet.clone(), Vec::new()));
        block.extend(when(IF_EQUAL, libc::AF_INET6 as u32, internet, Vec::new()));
        block.extend(when(IF_EQUAL, libc::AF_NETLINK as u32, protocols(&[libc::NETLINK_ROUTE]), Vec::new()));
    }
    block.push(no_family);
    block
}

/// The native personality, asking for it, and a debugger's fixed addresses.
fn personality() -> Block {
    const ADDR_NO_RANDOMIZE: u32 = 0x0004_0000;
    let mut block = vec![load(argument(0))];
    for known in [0, u32::MAX, ADDR_NO_RANDOMIZE] {
        block.extend(when(IF_EQUAL, known, vec![ret(ALLOW)], Vec::new()));
    }
    block.push(errno(libc::EPERM));
    block
}

/// Denied, unless an argument has none of these bits.
fn unless_clear(index: u32, bits: u32) -> Block {
    let mut block = vec![load(argument(index)), instruction(AND, bits)];
    block.extend(when(IF_EQUAL, 0, vec![ret(ALLOW)], vec![errno(libc::EPERM)]));
    block
}

/// The caller itself: 0.
fn only_self(index: u32) -> Block {
    unless_clear(index, u32::MAX)
}

fn one_of(index: u32, values: &[(u32, i32)]) -> Block {
    let mut block = vec![load(argument(index))];
    for &(value, error) in values {
        block.extend(when(IF_EQUAL, value, vec![errno(error)], Vec::new()));
    }
    block.push(ret(ALLOW));
    block
}

/// A balanced tree over the numbers; each leaf ends by itself.
fn tree(rules: &[(u32, Block)], program: &mut Block) {
    match rules {
        [] => program.push(ret(ALLOW)),
        [(number, block)] => {
            program.push(Instruction { code: IF_EQUAL, jt: 0, jf: block.len() as u8, k: *number });
            program.extend_from_slice(block);
            program.push(ret(ALLOW));
        }
        _ => {
            let (low, high) = rules.split_at(rules.len() / 2);
            // A conditional jump reaches 255 instructions, a plain one everywhere.
            program.push(Instruction { code: IF_AT_LEAST, jt: 0, jf: 1, k: high[0].0 });
            let jump = program.len();
            program.push(instruction(JUMP, 0));
            tree(low, program);
            program[jump].k = (program.len() - jump - 1) as u32;
            tree(high, program);
        }
    }
}

/// `then` where the test holds, else `otherwise`, which falls through when it is empty.
fn when(test: u16, value: u32, then: Block, otherwise: Block) -> Block {
    if then.is_empty() {
        let mut block = vec![Instruction { code: test, jt: otherwise.len() as u8, jf: 0, k: value }];
        block.extend(otherwise);
        return block;
    }
    let mut block = vec![Instruction { code: test, jt: 0, jf: then.len() as u8, k: value }];
    block.extend(then);
    block.extend(otherwise);
    block
}

fn instruction(code: u16, k: u32) -> Instruction {
    Instruction { code, jt: 0, jf: 0, k }
}

fn load(offset: u32) -> Instruction {
    instruction(LOAD, offset)
}

fn ret(action: u32) -> Instruction {
    instruction(RETURN, action)
}

fn errno(number: i32) -> Instruction {
    ret(libc::SECCOMP_RET_ERRNO | number as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    const STRICT: Filter =
        Filter { ptrace: false, namespaces: false, ipc: false, inet: true, udp: false, listen: false, others: false };

    /// What the kernel would do with this program and call.
    fn run(program: &[Instruction], number: i64, arguments: &[u32]) -> u32 {
        let mut data = [0; 64];
        data[0..4].copy_from_slice(&(number as u32).to_le_bytes());
        data[4..8].copy_from_slice(&AUDIT_ARCH.to_le_bytes());
        for (index, value) in arguments.iter().enumerate() {
            data[16 + 8 * index..20 + 8 * index].copy_from_slice(&value.to_le_bytes());
        }
        let (mut at, mut a) = (0, 0_u32);
        loop {
            let step = program[at];
            at += 1;
            match step.code {
                LOAD => a = u32::from_le_bytes(data[step.k as usize..step.k as usize + 4].try_into().unwrap()),
                AND => a &= step.k,
                JUMP => at += step.k as usize,
                IF_EQUAL => at += usize::from(if a == step.k { step.jt } else { step.jf }),
                IF_AT_LEAST => at += usize::from(if a >= step.k { step.jt } else { step.jf }),
                RETURN => return step.k,
                code => panic!("instruction {code}"),
            }
        }
    }

    #[test]
    fn every_rule_is_found_and_nothing_else_is_denied() {
        let program = compile(&STRICT);
        let denied = |number: i64, arguments: &[u32]| run(&program, number, arguments) != ALLOW;
        for &number in NEVER.iter().chain(NEVER_HERE).chain(MOUNTS).chain(IPC).chain(TRACING) {
            assert!(denied(number, &[]), "{number}");
        }
        for number in [libc::SYS_read, libc::SYS_openat, libc::SYS_execve, libc::SYS_wait4, libc::SYS_futex, 999] {
            assert!(!denied(number, &[]), "{number}");
        }
        assert_eq!(run(&program, libc::SYS_clone3, &[]) & 0xffff, libc::ENOSYS as u32);
        assert!(!denied(libc::SYS_clone, &[0x3d0f00]) && denied(libc::SYS_clone, &[0x1000_0000]));
        assert!(!denied(libc::SYS_prlimit64, &[0]) && denied(libc::SYS_prlimit64, &[7]));
        assert!(!denied(libc::SYS_kill, &[7]) && denied(libc::SYS_kill, &[u32::MAX]));
    }

    #[test]
    fn sockets_are_the_plain_ones() {
        let program = compile(&STRICT);
        let open = |family: i32, kind: i32, protocol: i32| {
            run(&program, libc::SYS_socket, &[family as u32, kind as u32, protocol as u32]) == ALLOW
        };
        assert!(open(libc::AF_UNIX, libc::SOCK_STREAM, 0));
        assert!(
            open(libc::AF_INET, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 6)
                && open(libc::AF_INET6, libc::SOCK_STREAM, 0)
        );
        assert!(
            !open(libc::AF_INET, libc::SOCK_STREAM, libc::IPPROTO_MPTCP) && !open(libc::AF_INET, libc::SOCK_DGRAM, 0)
        );
        assert!(
            open(libc::AF_NETLINK, libc::SOCK_RAW, 0) && !open(libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_AUDIT)
        );
        assert_ne!(run(&program, libc::SYS_listen, &[3, 1]), ALLOW);
        assert_eq!(run(&compile(&Filter { listen: true, ..STRICT }), libc::SYS_listen, &[3, 1]), ALLOW);
        assert!(!open(libc::AF_VSOCK, libc::SOCK_STREAM, 0) && !open(libc::AF_PACKET, libc::SOCK_RAW, 0));
    }

    #[test]
    fn another_instruction_set_ends_the_process() {
        let mut program = compile(&STRICT);
        program[1].k ^= 1;
        assert_eq!(run(&program, libc::SYS_read, &[]), libc::SECCOMP_RET_KILL_PROCESS);
    }
}
