//! One level: what it denies, how much it insists on each layer, and its limits.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::types::class::Class;
use crate::types::hosts::HostRule;
use crate::types::layer::{Layer, Want};
use crate::types::network::{Hold, NetworkMode};
use crate::types::paths::HostPath;
use crate::types::units::{Bytes, Time};

/// One level.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Policy {
    /// One sentence for `policy list`.
    pub description: String,
    /// What the agent must not do.
    pub deny: Vec<Class>,
    /// Which commands the agent's own settings let it run.
    pub commands: Commands,
    /// How much the policy insists on each layer; a layer that is not named is preferred.
    #[serde(default)]
    pub layers: BTreeMap<Layer, Want>,
    /// Bounds on what one run may use.
    #[serde(default)]
    pub limits: Limits,
    /// What the agent may connect to.
    #[serde(default)]
    pub network: Network,
    /// What the kernel lets the agent do beyond the layers.
    #[serde(default)]
    pub kernel: Kernel,
    /// What of the host's files the agent sees, read-only.
    #[serde(default)]
    pub files: Files,
    /// How the credential may be handed over.
    #[serde(default)]
    pub credential: Handing,
}

/// How the credential may be handed over.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Handing {
    /// In the agent's environment, where it looks nowhere else: every program that it starts has it, too.
    pub environment: bool,
}

/// Which commands the agent's settings allow. The word is the agent's `Bash(git *)`, not a kernel rule.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(
    untagged,
    expecting = "expected \"none\", \"any\" or a list of program names without blanks at the ends, parentheses and wildcards"
)]
pub enum Commands {
    /// `"none"` or `"any"`.
    All(AllCommands),
    /// Programs by name, with any arguments.
    List(#[serde(deserialize_with = "crate::policy::names::commands")] Vec<String>),
}

/// `none` or `any`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum AllCommands {
    /// No command at all.
    None,
    /// Every command.
    Any,
}

/// Bounds on one run. A bound that is absent is not set.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Limits {
    /// Memory of the whole cell where there is a cgroup, else the data of each process.
    pub memory: Bytes,
    /// Processes and threads.
    pub processes: u32,
    /// Share of the CPUs in percent of one CPU (cgroup only).
    pub cpu_percent: u32,
    /// Open files of one process.
    pub open_files: u32,
    /// Size of one file.
    pub file_size: Bytes,
    /// HOME, /tmp, /dev/shm and a fresh workspace together by their tmpfs; any other workspace, and without a tmpfs all
    /// of them, by counts.
    pub disk: Bytes,
    /// Files and directories, likewise.
    pub files: u32,
    /// Pseudo-terminals, the cell's own among them (private root only).
    pub terminals: u32,
    /// Wall time, where `--timeout` gives none.
    pub time: Time,
    /// Between TERM and KILL at the deadline.
    pub grace: Time,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            memory: Bytes(4 << 30),
            processes: 1024,
            cpu_percent: 400,
            open_files: 16384,
            file_size: Bytes(4 << 30),
            disk: Bytes(4 << 30),
            files: 1_000_000,
            terminals: 64,
            time: Time(Duration::from_secs(3600)),
            grace: Time(Duration::from_secs(5)),
        }
    }
}

/// What the agent may connect to.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Network {
    /// Where `--network` gives none.
    pub mode: NetworkMode,
    /// TCP ports that it may connect to in the host's network (the port of `--upstream` is added).
    pub connect: Ports,
    /// TCP ports that it may bind there.
    pub bind: Ports,
    /// UDP in the host's network: name resolution needs it.
    pub udp: bool,
    /// What must hold the agent to its broker, at least; a host that offers less is refused.
    pub least: Hold,
    /// How long the broker waits for an answer to begin, and for each further part of it.
    pub upstream_timeout: Time,
    /// Hosts that the broker leads to beside the model's API.
    pub allow: Vec<HostRule>,
    /// Whether the caller may add to them.
    pub allow_more: bool,
    /// More such hosts, each with the address that it has: the only way to a private network or to this machine.
    #[serde(deserialize_with = "crate::types::hosts::pinned")]
    pub allow_private: BTreeMap<HostRule, IpAddr>,
    /// Connections of the cell to the broker at once; more wait.
    pub connections: NonZeroU32,
    /// Bytes to and from these hosts in one run.
    pub bytes: Bytes,
    /// How long a connection to a host may take.
    pub connect_timeout: Time,
    /// How long a connection to one of these hosts may carry nothing.
    pub idle_timeout: Time,
}

impl Default for Network {
    fn default() -> Network {
        Network {
            mode: NetworkMode::Broker,
            connect: Ports::List(vec![443]),
            bind: Ports::List(vec![]),
            udp: true,
            least: Hold::Nothing,
            upstream_timeout: Time(Duration::from_secs(600)),
            allow: Vec::new(),
            allow_more: false,
            allow_private: BTreeMap::new(),
            connections: NonZeroU32::MIN.saturating_add(63),
            bytes: Bytes(16 << 30),
            connect_timeout: Time(Duration::from_secs(10)),
            idle_timeout: Time(Duration::from_secs(300)),
        }
    }
}

/// TCP ports.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(untagged, expecting = "expected \"any\" or a list of ports from 0 to 65535")]
pub enum Ports {
    /// `"any"`: no rule.
    Any(AnyWord),
    /// These and no others.
    List(Vec<u16>),
}

/// The word `any`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum AnyWord {
    /// No rule.
    Any,
}

/// What the kernel lets the agent do beyond the layers.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Kernel {
    /// Programs that may be executed: the kernel twin of `commands`.
    pub execute: Execute,
    /// ptrace(2) and process_vm_readv(2) inside the cell, for debuggers.
    pub ptrace: bool,
    /// Namespaces inside the cell, for an agent that brings a sandbox of its own.
    pub nested_namespaces: bool,
}

impl Default for Kernel {
    fn default() -> Kernel {
        Kernel { execute: Execute::Any(AnyWord::Any), ptrace: false, nested_namespaces: false }
    }
}

/// Programs that Landlock lets the agent execute.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(untagged, expecting = "expected \"any\" or a list of programs by name or by path from / on")]
pub enum Execute {
    /// `"any"`: everything that the cell shows.
    Any(AnyWord),
    /// The agent's own program, the MCP servers that the caller names, and these.
    List(#[serde(deserialize_with = "crate::policy::names::executables")] Vec<String>),
}

/// What of the host's files the agent sees, read-only. What does not exist on this host is left out.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Files {
    /// Programs and libraries.
    pub programs: Vec<HostPath>,
    /// Configuration that programs cannot do without. Never all of /etc: it holds secrets of services.
    pub config: Vec<HostPath>,
}

/// Where musl's loader looks for libraries, if they are not in its usual places.
#[cfg(target_arch = "x86_64")]
pub(crate) const MUSL_PATH: &str = "/etc/ld-musl-x86_64.path";

#[cfg(not(target_arch = "x86_64"))]
pub(crate) const MUSL_PATH: &str = "/etc/ld-musl-aarch64.path";

impl Default for Files {
    fn default() -> Files {
        let list = |names: &[&str]| names.iter().filter_map(|&name| HostPath::try_from(name.to_owned()).ok()).collect();
        Files {
            programs: list(&["/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32"]),
            config: list(&[
                "/etc/alternatives",
                "/etc/ca-certificates",
                "/etc/crypto-policies",
                "/etc/ld.so.cache",
                MUSL_PATH,
                "/etc/localtime",
                "/etc/pki/ca-trust",
                "/etc/pki/tls",
                "/etc/ssl",
            ]),
        }
    }
}

impl Policy {
    /// How much this policy insists on a layer.
    pub fn want(&self, layer: Layer) -> Want {
        self.layers.get(&layer).copied().unwrap_or_default()
    }
}

impl Ports {
    /// The list, or nothing when every port is allowed.
    pub fn list(&self) -> Option<&[u16]> {
        match self {
            Ports::Any(_) => None,
            Ports::List(ports) => Some(ports),
        }
    }
}

impl Execute {
    /// The list, or nothing when every program is allowed.
    pub fn list(&self) -> Option<&[String]> {
        match self {
            Execute::Any(_) => None,
            Execute::List(programs) => Some(programs),
        }
    }
}
