//! The coordinator: command line and control plane of a training run.
//!
//! The shell around `coordinator_core`: sockets, processes, files and the terminal are here, decisions are there. This crate
//! must never know a tensor; it starts in milliseconds.
//!
//! | module | what it does |
//! |---|---|
//! | [`cli`] | what can be asked |
//! | [`launch`](mod@launch) | `launch`, `resume`: everything from a command line to the end of a run |
//! | [`origin`] | where a run begins: anew or from a checkpoint, with which configuration |
//! | [`prepare`](mod@prepare) | the data set, made ready by a child |
//! | [`driver`], `wire` | the loop: one input, one step of the core, its actions performed; words to messages and back |
//! | [`server`], [`admission`] | the gRPC server, and who may speak to it |
//! | [`journal`] | what a successor on this machine goes on from |
//! | [`tenure`] | the run's lease in its store, against coordinators elsewhere |
//! | [`takeover`], `follow` | finding a run at work whose coordinator is dead, and going on with it |
//! | [`records`] | `metrics.jsonl`, `ledger.jsonl` and `log.txt` |
//! | [`chaos`](mod@chaos) | faults on purpose |
//! | [`view`], [`render`], [`display`] | what is shown: as data, as text, on which screen |
//! | [`entrance`], `invite` | where a coordinator is reached, and how workers come: proofs, how those of this machine are started |
//! | [`door`], [`credentials`](mod@credentials) | who is let in off loopback, and with what |
//! | [`state`], [`operate`](mod@operate) | finding and asking the coordinator of a run on this machine |
//! | [`plot`](mod@plot) | the curves of a run as a picture |
//! | [`trained`] | what is done with trained networks: this process becomes a worker |
//! | [`report`](mod@report) | where a run's time went |
//! | [`s3_args`] | how a store is reached before a run's configuration is known |
//! | [`submit`](mod@submit) | a training as a job of a cluster's scheduler |
//! | [`doctor`](mod@doctor) | what would hinder a run on this machine |
//! | [`config_cli`], [`checkpoints_cli`] | `config`: experiment files; `checkpoints`: what a run has stored |

pub mod admission;
pub mod chaos;
pub mod checkpoints_cli;
pub mod cli;
pub mod config_cli;
pub mod credentials;
pub mod display;
pub mod doctor;
pub mod door;
pub mod driver;
pub mod entrance;
pub mod failure;
mod follow;
mod invite;
pub mod journal;
pub mod launch;
pub mod machine;
pub mod operate;
pub mod origin;
pub mod plot;
pub mod prepare;
pub mod records;
pub mod render;
pub mod report;
pub mod s3_args;
pub mod server;
pub mod signals;
pub mod state;
pub mod submit;
pub mod takeover;
pub mod tenure;
pub mod trained;
pub mod view;
mod wire;
