//! One undisturbed run that several tests look at. They read it, or copy it; nobody changes it.

use std::path::Path;
use std::sync::LazyLock;
use tests::experiment::Experiment;
pub use tests::finished::Finished;

/// The tiny run with two workers, undisturbed.
pub fn finished() -> &'static Finished {
    static FINISHED: LazyLock<Finished> = LazyLock::new(|| {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("finished");
        Finished::run(folder, &Experiment::tiny())
    });
    &FINISHED
}
