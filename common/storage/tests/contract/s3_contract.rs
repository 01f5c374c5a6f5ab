//! The same suite against a real S3 server, which the test starts and which ends with it.

use crate::suite;
use crate::support::{checkpoint, stored_part};
use common::config::resolved::S3;
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use storage::{Patience, StorageError, Store};
use std::time::Duration;

/// The script's code for "something that it needs is missing".
const NEEDS: i32 = 69;
