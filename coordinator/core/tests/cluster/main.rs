//! The cluster on virtual time: the stories that matter, and random histories, against a model of the workers.

mod apart;
mod endings;
mod look;
mod losses;
mod messages;
mod model;
mod places;
mod random;
mod run;
mod takeover;
