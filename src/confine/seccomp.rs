//! The seccomp filter. A companion to the other layers, never a wall: it takes away system calls that no agent needs
//! and that have led out of sandboxes, and closes what Landlock's TCP rules leave open.
#![forbid(unsafe_code)]

mod calls;

pub use calls::ASKED;
use calls::{
    ATTRIBUTES, F_NOTIFY, F_SETDELEG, F_SETLEASE, F_SETOWN_EX, F_SETSIG, FLAGS, IPC, MOUNTS, NEVER, NEVER_HERE, OTHERS,
    OTHERS_BY_KIND, SET_OWNER, TRACING,
};

use crate::plan::rules::{Filter, Modes};
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
        OTHERS_BY_KIND.iter().for_each(|&(number, user)| add(number, only_self_by_kind(user)));
        add(libc::SYS_kill, one_of(0, &[(u32::MAX, libc::EPERM)]));
    }
    if filter.modes == Modes::Asked {
        ASKED.concat().iter().for_each(|&number| add(number, vec![ret(libc::SECCOMP_RET_USER_NOTIF)]));
        ATTRIBUTES.iter().for_each(|&number| add(number, vec![errno(libc::EOPNOTSUPP)]));
        // No C library has called it for fifteen years.
        #[cfg(target_arch = "x86_64")]
        add(libc::SYS_futimesat, vec![errno(libc::ENOSYS)]);
    }
    // Contexts are counted for the whole host (fs.aio-max-nr). Databases and libaio do without where a kernel has none.
    add(libc::SYS_io_setup, vec![errno(libc::ENOSYS)]);
    add(libc::SYS_fcntl, fcntl(filter));
    add(libc::SYS_ioctl, ioctl(filter));
    add(libc::SYS_personality, personality());
    add(libc::SYS_socket, socket(filter));
    add(libc::SYS_socketpair, socketpair(filter));
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

/// A lease or a delegation on a file that others have, too, holds their open(2) up. EACCES is what a file of somebody
/// else's answers. dnotify is a signal from a descriptor, and there has been inotify since 2005: EINVAL, as without
/// CONFIG_DNOTIFY. An owner of a descriptor is signalled by the kernel, and may be any process of the UID.
fn fcntl(filter: &Filter) -> Block {
    let mut values = vec![(F_SETLEASE, libc::EACCES), (F_SETDELEG, libc::EACCES), (F_NOTIFY, libc::EINVAL)];
    if !filter.others {
        values.extend([libc::F_SETOWN as u32, F_SETSIG, F_SETOWN_EX].map(|command| (command, libc::EPERM)));
    }
    one_of(1, &values)
}

/// The input queue of a terminal is the shell's that gets it back (CVE-2016-2568, CVE-2023-28339).
fn ioctl(filter: &Filter) -> Block {
    let terminal = [libc::TIOCSTI as u32, libc::TIOCLINUX as u32, libc::TIOCSETD as u32, libc::TIOCCONS as u32];
    let mut values = terminal.map(|request| (request, libc::EPERM)).to_vec();
    if !filter.others {
        values.extend(SET_OWNER.map(|request| (request, libc::EPERM)));
    }
    if filter.modes == Modes::Asked {
        // As a file system without flags.
        values.extend(FLAGS.map(|request| (request, libc::ENOTTY)));
    }
    one_of(1, &values)
}

/// Pairs have no name, so that programs that speak with their children keep them where they may make no other Unix
/// socket. Not of datagrams: connect(2) and sendto(2) lead such a socket anywhere. Of other families there are none
/// (`EOPNOTSUPP`), but the kernel makes two sockets before it says so.
fn socketpair(filter: &Filter) -> Block {
    let mut unix = Vec::new();
    if filter.unix {
        unix.push(ret(ALLOW));
    } else {
        unix.extend([load(argument(1)), instruction(AND, 0xf)]);
        for kind in [libc::SOCK_STREAM, libc::SOCK_SEQPACKET] {
            unix.extend(when(IF_EQUAL, kind as u32, vec![ret(ALLOW)], Vec::new()));
        }
        unix.push(errno(libc::ESOCKTNOSUPPORT));
    }
    let mut block = vec![load(argument(0))];
    block.extend(when(IF_EQUAL, libc::AF_UNIX as u32, unix, vec![errno(libc::EAFNOSUPPORT)]));
    block
}

/// Unix where no path leads to a socket of somebody else's, route (name resolution asks it for addresses), and plain TCP
/// and UDP. MPTCP goes round Landlock's rules, and the exotic families are a store of kernel bugs. EAFNOSUPPORT is what
/// programs know of kernels without a family: nscd, X11 and the journal are then not asked.
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
    if filter.unix {
        block.extend(when(IF_EQUAL, libc::AF_UNIX as u32, vec![ret(ALLOW)], Vec::new()));
    }
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

/// The caller itself, or its process group: 0, and of no user.
fn only_self_by_kind(user: u32) -> Block {
    let mut block = vec![load(argument(0))];
    block.extend(when(IF_EQUAL, user, vec![errno(libc::EPERM)], Vec::new()));
    block.extend(only_self(1));
    block
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

    const STRICT: Filter = Filter {
        ptrace: false,
        namespaces: false,
        ipc: false,
        unix: false,
        inet: true,
        udp: false,
        listen: false,
        others: false,
        modes: Modes::Asked,
    };

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
    fn nobody_but_the_caller_is_named() {
        let program = compile(&STRICT);
        let said = |number: i64, arguments: &[u32]| match run(&program, number, arguments) {
            ALLOW => 0,
            answer => (answer & 0xffff) as i32,
        };
        for (number, user) in [(libc::SYS_setpriority, 2), (libc::SYS_ioprio_set, 3)] {
            assert_eq!((said(number, &[1, 0]), said(number, &[1, 7])), (0, libc::EPERM), "{number}");
            assert_eq!((said(number, &[user, 0]), said(number, &[user, 7])), (libc::EPERM, libc::EPERM), "{number}");
        }
        for (command, errno) in [(F_SETLEASE, libc::EACCES), (F_SETDELEG, libc::EACCES), (F_NOTIFY, libc::EINVAL)] {
            assert_eq!(said(libc::SYS_fcntl, &[3, command]), errno, "{command}");
        }
        let others = compile(&Filter { others: true, ..STRICT });
        for command in [libc::F_SETOWN as u32, F_SETSIG, F_SETOWN_EX] {
            assert_eq!(said(libc::SYS_fcntl, &[3, command]), libc::EPERM, "{command}");
            assert_eq!(run(&others, libc::SYS_fcntl, &[3, command]), ALLOW, "{command}");
        }
        for command in [libc::F_DUPFD_CLOEXEC, libc::F_SETFD, libc::F_SETFL, libc::F_SETLK, libc::F_OFD_SETLKW] {
            assert_eq!(said(libc::SYS_fcntl, &[3, command as u32]), 0, "{command}");
        }
        assert_eq!(said(libc::SYS_io_setup, &[]), libc::ENOSYS);
    }

    #[test]
    fn modes_are_asked_of_the_launcher_where_the_uid_is_shared() {
        let asked = compile(&STRICT);
        let free = compile(&Filter { modes: Modes::Free, ..STRICT });
        for number in ASKED.concat() {
            assert_eq!(run(&asked, number, &[]), libc::SECCOMP_RET_USER_NOTIF, "{number}");
            assert_eq!(run(&free, number, &[]), ALLOW, "{number}");
        }
        for &number in ATTRIBUTES {
            assert_eq!(run(&asked, number, &[]) & 0xffff, libc::EOPNOTSUPP as u32, "{number}");
            assert_eq!(run(&free, number, &[]), ALLOW, "{number}");
        }
        for request in FLAGS {
            assert_eq!(run(&asked, libc::SYS_ioctl, &[3, request]) & 0xffff, libc::ENOTTY as u32, "{request:x}");
            assert_eq!(run(&free, libc::SYS_ioctl, &[3, request]), ALLOW, "{request:x}");
        }
    }

    #[test]
    fn pairs_of_sockets_lead_nowhere() {
        let pair = |filter: &Filter, family: i32, kind: i32| {
            run(&compile(filter), libc::SYS_socketpair, &[family as u32, kind as u32, 0]) == ALLOW
        };
        let open = Filter { unix: true, ..STRICT };
        for filter in [&STRICT, &open] {
            assert!(pair(filter, libc::AF_UNIX, libc::SOCK_STREAM | libc::SOCK_CLOEXEC));
            assert!(pair(filter, libc::AF_UNIX, libc::SOCK_SEQPACKET | libc::SOCK_NONBLOCK));
            // Raw Unix sockets are datagrams.
            for kind in [libc::SOCK_DGRAM, libc::SOCK_RAW] {
                assert_eq!(pair(filter, libc::AF_UNIX, kind), filter.unix);
            }
            for family in [libc::AF_INET, libc::AF_INET6, libc::AF_TIPC, libc::AF_NETLINK, libc::AF_VSOCK] {
                assert!(!pair(filter, family, libc::SOCK_STREAM) && !pair(filter, family, libc::SOCK_DGRAM));
            }
        }
    }

    #[test]
    fn sockets_are_the_plain_ones() {
        let program = compile(&STRICT);
        let open = |family: i32, kind: i32, protocol: i32| {
            run(&program, libc::SYS_socket, &[family as u32, kind as u32, protocol as u32]) == ALLOW
        };
        assert!(!open(libc::AF_UNIX, libc::SOCK_STREAM, 0) && !open(libc::AF_UNIX, libc::SOCK_DGRAM, 0));
        let unix = compile(&Filter { unix: true, ..STRICT });
        assert_eq!(run(&unix, libc::SYS_socket, &[libc::AF_UNIX as u32, 1, 0]), ALLOW);
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
