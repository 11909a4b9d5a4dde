//! The command line. Parsing touches nothing: it says what was asked for, not what is there.
#![forbid(unsafe_code)]

use std::ffi::OsString;
use std::os::fd::RawFd;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueHint};

use crate::types::layer::{Require, parse_require};
use crate::types::network::NetworkMode;

/// Run a coding agent for one user in a cell of its own, and leave nothing of it behind
///
/// A cell has a private HOME, /tmp and workspace on memory that dies with it, sees no process but its own, and gets the
/// credential without it ever being in an argument or an environment. Where this host cannot confine something,
/// oubliette says so before the agent starts.
#[derive(Debug, Parser)]
#[command(name = "oubliette", version, max_term_width = 100, arg_required_else_help = true)]
#[command(after_help = "Examples:
  oubliette run -- id                                   any program, nothing else needed
  oubliette run --user alice --credential-file token --level balanced -- claude -p 'fix the tests'
  oubliette explain --level paranoid -- claude -p hi    what would happen, layer by layer
  oubliette doctor                                      what this host offers
  oubliette doctor --attack                             let a hostile agent try it
  oubliette sweep                                       remove what dead runs left (cron)

Exit status: the agent's own; 124 deadline; 125 refused or failed before the agent ran;
126 cannot execute; 127 not found; 128+n ended by signal n.")]
pub struct Cli {
    #[command(subcommand)]
    /// What to do.
    pub command: Command,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run an agent in a fresh cell and wipe it afterwards
    Run(Box<RunArgs>),
    /// Say what `run` with the same arguments would do, layer by layer, and why
    Explain(Box<ExplainArgs>),
    /// Say what this host offers, for every level
    ///
    /// With --attack two cells are started on this host, and a hostile agent in the one tries every known attack on a
    /// victim in the other. It touches only what was made for it and only this machine. What is open must be what the
    /// plan says is open.
    ///
    /// Exit status: 0 every layer is met, 1 some degrade, 2 a level refuses, or an attack is open against the plan.
    Doctor(DoctorArgs),
    /// Kill and wipe what dead runs left; never touches a live cell
    Sweep(SweepArgs),
    /// List the live cells
    Ps(PsArgs),
    /// End a live cell: TERM, then KILL after the grace period
    Kill(KillArgs),
    /// List, show and check policies
    Policy(PolicyArgs),
    /// A victim for the attack suite
    #[command(name = "__victim", hide = true)]
    Victim(ProbeArgs),
    /// A hostile agent for the attack suite
    #[command(name = "__attack", hide = true)]
    Attack(ProbeArgs),
    /// Prints what the kernel says about this process
    #[command(name = "__posture", hide = true)]
    Posture,
}

/// Free arguments of a hidden subcommand.
#[derive(Debug, Args)]
pub struct ProbeArgs {
    /// Handed on as they are.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub args: Vec<OsString>,
}

/// Arguments of `run`.
#[derive(Debug, Args, Default)]
pub struct RunArgs {
    /// Whose run this is: any text (a mail address, a UUID, …); never used as a path
    #[arg(long, short, value_name = "ID", help_heading = "Who", env = "OUBLIETTE_USER")]
    pub user: Option<OsString>,

    /// Read the agent's credential from this file (mode 0600 or stricter, not a link)
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, help_heading = "Who")]
    #[arg(conflicts_with_all = ["credential_fd", "credential_env", "credential_stdin", "login_file"])]
    pub credential_file: Option<PathBuf>,
    /// Read the credential from this open descriptor
    #[arg(long, value_name = "N", help_heading = "Who", conflicts_with_all = ["credential_env", "credential_stdin", "login_file"])]
    pub credential_fd: Option<RawFd>,
    /// Read the credential from this variable, whose memory is then overwritten
    #[arg(long, value_name = "NAME", help_heading = "Who", conflicts_with_all = ["credential_stdin", "login_file"])]
    pub credential_env: Option<OsString>,
    /// Read the credential from standard input; the agent then gets an empty one
    #[arg(long, help_heading = "Who", conflicts_with = "login_file")]
    pub credential_stdin: bool,
    /// Take the token of the moment from the file that the agent's own login wrote, such as ~/.claude/.credentials.json; what
    /// renews it stays outside
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, help_heading = "Who")]
    pub login_file: Option<PathBuf>,

    /// How much the agent may do: paranoid, balanced, developer, or a level of your own
    #[arg(long, short, value_name = "LEVEL", help_heading = "What it may do", env = "OUBLIETTE_LEVEL")]
    pub level: Option<String>,
    /// Take the policy from this file instead of a named level
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, help_heading = "What it may do", env = "OUBLIETTE_POLICY")]
    pub policy: Option<PathBuf>,
    /// Which agent the command is (default: guessed from its name); `none` for any program
    #[arg(long, short, value_name = "NAME", help_heading = "What it may do", env = "OUBLIETTE_AGENT")]
    pub agent: Option<String>,
    /// Refuse to run without this layer (repeatable; `all` for every one); OUBLIETTE_REQUIRE adds to it, with commas
    #[arg(long, value_name = "LAYER", help_heading = "What it may do", value_parser = parse_require)]
    pub require: Vec<Require>,
    /// The network that the agent sees
    #[arg(long, value_enum, value_name = "MODE", help_heading = "What it may do", env = "OUBLIETTE_NETWORK")]
    pub network: Option<NetworkMode>,
    /// With --network broker: let the agent reach this host, too (repeatable; `*.HOST` for all below it), where the policy has
    /// `allow-more`; OUBLIETTE_ALLOW adds to it, with commas
    #[arg(long, value_name = "HOST[:PORT]", value_hint = ValueHint::Hostname, help_heading = "What it may do")]
    pub allow: Vec<String>,
    /// MCP servers for the agent: a file with an `mcpServers` object
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, help_heading = "What it may do", env = "OUBLIETTE_MCP_CONFIG")]
    pub mcp_config: Option<PathBuf>,
    /// Speak with another API that serves the agent's model, by a name of the agent's file: `bedrock`, `vertex`
    #[arg(long, value_name = "NAME", help_heading = "What it may do", env = "OUBLIETTE_ENDPOINT")]
    pub endpoint: Option<String>,
    /// Base URL of the agent's model API
    #[arg(long, value_name = "URL", value_hint = ValueHint::Url, help_heading = "What it may do", env = "OUBLIETTE_UPSTREAM")]
    pub upstream: Option<String>,
    /// With --network broker: trust the certificate authorities of this PEM file instead of the host's
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, help_heading = "What it may do", env = "OUBLIETTE_CA")]
    pub ca: Option<PathBuf>,
    /// With --network broker: add this header, with the value from FILE, to the agent's requests to HOST; the cell never has
    /// it (repeatable). HOST is one that the policy has or lets the caller add; FILE as with --credential-file
    #[arg(long, value_name = "HOST[:PORT]=header:NAME:FILE", help_heading = "What it may do")]
    pub inject: Vec<OsString>,
    /// With --network broker: show the upstream the certificate of this PEM file, which also holds its key (mode 0600)
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, help_heading = "What it may do", env = "OUBLIETTE_CLIENT_CERT")]
    pub client_cert: Option<PathBuf>,
    /// One more variable for the agent (repeatable); refused for names that steer the loader, the agent or its credential
    #[arg(long, value_name = "NAME=VALUE", help_heading = "What it may do")]
    pub setenv: Vec<OsString>,

    /// The agent's working directory: `fresh` (wiped), `user` (kept, one per user), or a directory of yours
    #[arg(long, short, value_name = "fresh|user|DIR", value_hint = ValueHint::DirPath, help_heading = "Files", env = "OUBLIETTE_WORKSPACE")]
    pub workspace: Option<PathBuf>,
    /// With --workspace user: put back what the agent resumes a conversation from, as its last run left that, and keep it for
    /// the next
    #[arg(long, help_heading = "Files")]
    pub resume: bool,
    /// Fill a fresh workspace with a copy of this directory
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath, help_heading = "Files")]
    pub copy_in: Option<PathBuf>,
    /// Pass over what cannot be copied in (unreadable files, other file systems) and name it, instead of refusing the run
    #[arg(long, requires = "copy_in", help_heading = "Files")]
    pub copy_in_skip: bool,
    /// After the run put the workspace into this new directory, or as a tar archive into FILE.tar or `-`
    #[arg(long, value_name = "DIR|FILE.tar|-", value_hint = ValueHint::AnyPath, help_heading = "Files")]
    pub export: Option<PathBuf>,
    /// After the run write what the agent changed as a patch in git's format
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, help_heading = "Files")]
    pub patch: Option<PathBuf>,

    /// End the run after this time (`90s`, `30m`, `1h`) with status 124
    #[arg(long, value_name = "TIME", help_heading = "Limits", env = "OUBLIETTE_TIMEOUT")]
    pub timeout: Option<String>,
    /// Time between TERM and KILL at the deadline
    #[arg(long, value_name = "TIME", help_heading = "Limits", env = "OUBLIETTE_GRACE")]
    pub grace: Option<String>,
    /// Start beside other cells even where nothing separates them and only one should live at a time
    #[arg(long, help_heading = "Host", conflicts_with = "wait")]
    pub beside: bool,
    /// Where only one cell may live at a time, wait this long for another one instead of refusing to run
    #[arg(long, value_name = "TIME", help_heading = "Limits", env = "OUBLIETTE_WAIT")]
    pub wait: Option<String>,

    /// Write one JSON object about the run to this open descriptor
    #[arg(long, value_name = "N", help_heading = "Output")]
    pub report_fd: Option<RawFd>,
    /// No progress and no notes on standard error, only errors
    #[arg(long, short, help_heading = "Output")]
    pub quiet: bool,
    /// Where cells live while they run
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath, help_heading = "Host", env = "OUBLIETTE_STATE_DIR")]
    pub state_dir: Option<PathBuf>,
    /// UIDs that root lends to runs, `FIRST-LAST`; where nobody names them, those of `oubliette` in /etc/subuid
    #[arg(long, value_name = "FIRST-LAST", help_heading = "Host", env = "OUBLIETTE_UID_RANGE")]
    pub uid_range: Option<String>,
    /// A directory of levels (NAME.toml) and agents (agents/NAME.toml) that come before the compiled-in ones
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath, help_heading = "Host", env = "OUBLIETTE_POLICY_DIR")]
    pub policy_dir: Option<PathBuf>,

    /// The agent and its arguments
    #[arg(last = true, value_name = "COMMAND", value_hint = ValueHint::CommandWithArguments)]
    pub command: Vec<OsString>,
}

/// Arguments of `explain`.
#[derive(Debug, Args)]
pub struct ExplainArgs {
    /// Machine-readable output
    #[arg(long, help_heading = "Output")]
    pub json: bool,
    #[command(flatten)]
    /// The same as for `run`.
    pub run: RunArgs,
}

/// Arguments of `doctor`.
#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// Start two cells and let a hostile agent in the one attack the other
    #[arg(long)]
    pub attack: bool,
    /// Attack cells of this level only (default: of every level)
    #[arg(long, short, value_name = "LEVEL", requires = "attack", conflicts_with = "policy")]
    pub level: Option<String>,
    /// Attack cells with the policy of this file
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, requires = "attack")]
    pub policy: Option<PathBuf>,
    /// The network of the attacked cells (default: the level's)
    #[arg(long, requires = "attack")]
    pub network: Option<NetworkMode>,
    /// Machine-readable output
    #[arg(long)]
    pub json: bool,
    /// Where cells live while they run
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath, env = "OUBLIETTE_STATE_DIR")]
    pub state_dir: Option<PathBuf>,
}

/// Arguments of `sweep`.
#[derive(Debug, Args)]
pub struct SweepArgs {
    /// Say what would be removed and remove nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Machine-readable output
    #[arg(long)]
    pub json: bool,
    /// Where cells live while they run
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath, env = "OUBLIETTE_STATE_DIR")]
    pub state_dir: Option<PathBuf>,
}

/// Arguments of `ps`.
#[derive(Debug, Args)]
pub struct PsArgs {
    /// Machine-readable output
    #[arg(long)]
    pub json: bool,
    /// Where cells live while they run
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath, env = "OUBLIETTE_STATE_DIR")]
    pub state_dir: Option<PathBuf>,
}

/// Arguments of `kill`.
#[derive(Debug, Args)]
pub struct KillArgs {
    /// The cell, as `ps` lists it (an unambiguous beginning is enough)
    pub cell: String,
    /// Where cells live while they run
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath, env = "OUBLIETTE_STATE_DIR")]
    pub state_dir: Option<PathBuf>,
}

/// Arguments of `policy`.
#[derive(Debug, Args)]
pub struct PolicyArgs {
    #[command(subcommand)]
    /// What to do with policies.
    pub action: PolicyAction,
}

/// What to do with policies.
#[derive(Debug, Subcommand)]
pub enum PolicyAction {
    /// Name the levels and agents, where each comes from, what an agent's settings can say and which of its versions was
    /// tested
    List {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Print a level's policy or an agent's file
    Show {
        /// Its name
        name: String,
    },
    /// Check a policy file
    Check {
        /// The file
        #[arg(value_hint = ValueHint::FilePath)]
        file: PathBuf,
    },
}
