//! Checkpoints in a store: `file://`, `s3://`, `gs://`, `az://`, `memory://`, all by the same protocol.
//!
//! The only crate that names `object_store`. It adds what that client leaves to its user: deadlines on everything, retries
//! with a wall-clock budget, verification of what is read, and a commit that stays safe when an acknowledgement is lost or
//! when a store ignores create-only writes. It must never know a tensor library, or what a GAN is.
//!
//! | file | what it does |
//! |---|---|
//! | `location` | what a person types -> root, run, checkpoint |
//! | `open` | root -> client, credentials, time-outs |
//! | `source` | what is written: bytes, or a file |
//! | `store` | bounded, retried reads and writes of single objects |
//! | `run` | one run: blobs, files |
//! | `commit` | the commit protocol |
//! | `restore` | listing, loading, the newest checkpoint that can be restored |
//! | `verify` | re-reading and re-hashing everything |
//! | `lease` | who coordinates a run |
//! | `mirror` | objects as files of this machine |
//! | `sweep` | deleting what nobody needs |
//! | `probe` | what this store honours |
//! | `faulty` | stores that fail on purpose |

mod commit;
mod error;
pub mod faulty;
mod lease;
mod location;
mod mirror;
mod open;
mod probe;
mod restore;
mod retry;
mod run;
mod source;
mod store;
mod sweep;
mod verify;

pub use commit::{CommitError, Committed};
pub use error::StorageError;
pub use lease::{Lease, LeaseError, Pulse};
pub use location::{RunUrl, resolve_run_url};
pub use probe::Findings;
pub use restore::{Newest, Skipped};
pub use retry::Patience;
pub use run::{Content, MAX_BLOB_BYTES, Run, Stored, fresh_nonce};
pub use store::Store;
pub use sweep::Swept;
pub use verify::{Damage, Verifier};
