//! The storage contract: one suite for every store, and the faults that the commit protocol must survive.

mod commit;
mod faults;
mod lease;
mod s3_contract;
mod suite;
mod support;
mod sweep;

use support::{Memory, file_store};

#[tokio::test]
async fn memory_contract() {
    suite::run(&Memory::fresh().store()).await;
}

#[tokio::test]
async fn file_contract() {
    let folder = tempfile::tempdir().unwrap();
    suite::run(&file_store(folder.path())).await;
}

/// Everything that happens once or twice and then passes is not noticed.
#[tokio::test(start_paused = true)]
async fn contract_under_passing_faults() {
    use storage::faulty::{Call, Fault, Faults, Rule};
    let faults = Faults::new([
        Rule::new(Call::Put, "", Fault::Fail).nth(2),
        Rule::new(Call::Put, "", Fault::LoseAnswer).nth(5),
        Rule::new(Call::Put, "manifests/", Fault::LoseAnswer).nth(3),
        Rule::new(Call::Put, "manifests/", Fault::ClaimExists).nth(1),
        Rule::new(Call::Part, "", Fault::Fail).nth(2),
        Rule::new(Call::Complete, "", Fault::LoseAnswer).nth(1),
        Rule::new(Call::Get, "blobs/", Fault::FlipBit(77)).nth(1),
        Rule::new(Call::Get, "blobs/", Fault::Truncate(10)).nth(4),
        Rule::new(Call::Get, "manifests/", Fault::Fail).first(2),
        Rule::new(Call::Head, "", Fault::Hang).nth(2),
        Rule::new(Call::List, "", Fault::Fail).first(3),
        Rule::new(Call::Delete, "", Fault::Fail).nth(1),
    ]);
    suite::run(&Memory::fresh().store().with_faults(&faults)).await;
    assert!(faults.count(Call::Complete, "blobs/") >= 2, "the lost completion was met");
}
