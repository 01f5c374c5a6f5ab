//! `coordinator checkpoints`: lists, shows and verifies what a run has stored.
//!
//! Reads only: nothing here writes to a store, makes a folder or deletes. The checkpoint's own configuration is not known
//! before it is found, so an S3 store is described by flags, by `GANFLEET__CHECKPOINT__S3__…`, or by `AWS_ENDPOINT_URL`.

use crate::failure::Failure;
use crate::s3_args::S3Args;
use clap::{Args, Subcommand};
use common::checkpoint::{Dataset, Manifest, ManifestKey};
use common::config::resolved::RunConfig;
use common::exit::Exit;
use common::growth::Level;
use common::ids::ImagesSeen;
use serde_json::{Value as Json, json};
use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use storage::{Damage, Patience, Run, Skipped, StorageError, Store, Verifier, resolve_run_url};

/// `coordinator checkpoints …`
#[derive(Clone, Debug, Subcommand)]
pub enum CheckpointsCommand {
    /// List the checkpoints of a run, newest first
    Ls(Place),
    /// Show what a checkpoint holds, and its state_hash, by which two runs are compared
    Show(Place),
    /// Read and re-hash everything, and name each damaged part (exit code 5 if there is one)
    Verify(Place),
}

/// Which checkpoints, where, and how to print.
#[derive(Clone, Debug, Args)]
pub struct Place {
    /// URL or path of a run (s3://bucket/runs/faces), or of one manifest of it; `show` takes a run's newest
    pub url: String,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// How the store is reached.
    #[command(flatten)]
    pub s3: S3Args,
}

/// Carries out `command` and writes its answer to `out`.
///
/// # Errors
/// The store's trouble, or that there is no such checkpoint. A damaged one is not an error: it is the answer, with
/// [`Exit::Storage`].
pub async fn run(command: &CheckpointsCommand, out: &mut dyn Write) -> Result<Exit, Failure> {
    let (CheckpointsCommand::Ls(place) | CheckpointsCommand::Show(place) | CheckpointsCommand::Verify(place)) = command;
    let (run, key) = find(place)?;
    let (answer, exit) = match command {
        CheckpointsCommand::Ls(place) => (ls(&run, key, place.json).await?, Exit::Ok),
        CheckpointsCommand::Show(place) => (show(&run, key, place.json).await?, Exit::Ok),
        CheckpointsCommand::Verify(place) => verify(&run, key, place.json).await?,
    };
    match out.write_all(answer.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::new(Exit::Internal, format!("cannot write the answer: {error}")))
        }
        _ => Ok(exit),
    }
}

fn find(place: &Place) -> Result<(Run, Option<ManifestKey>), Failure> {
    let url = resolve_run_url(&place.url)?;
    // Somebody waits: a store that does not answer is told of sooner than a training run would give up on it.
    let patience = Patience { budget: Duration::from_secs(20), ..Patience::default() };
    let store = Store::open_existing(&url.root, &place.s3.resolve()?)?.with_patience(patience);
    Ok((store.run(&url.run)?, url.key))
}

/// The checkpoints that are meant, newest first; none at all is an error that says where there may be some.
async fn keys(run: &Run, key: Option<ManifestKey>) -> Result<Vec<ManifestKey>, Failure> {
    let keys = match key {
        Some(key) => vec![key],
        None => run.manifests().await?,
    };
    if keys.is_empty() { Err(nothing(run).await) } else { Ok(keys) }
}

async fn nothing(run: &Run) -> Failure {
    const SHOWN: usize = 10;
    let mut message = format!("{} holds no checkpoint", run.url());
    // Only advice: that a listing fails here is not what the user asked about.
    if let Ok(names) = run.store().runs().await
        && !names.is_empty()
    {
        let rest = if names.len() > SHOWN { ", ..." } else { "" };
        let names = names.iter().take(SHOWN).cloned().collect::<Vec<_>>().join(", ");
        let _ = write!(message, ". {} has: {names}{rest}", run.store().url());
    }
    Failure::new(Exit::Storage, message)
}

/// A manifest, or why it cannot be read; only the store's own trouble ends a command.
async fn load(run: &Run, key: ManifestKey) -> Result<Result<Manifest, StorageError>, Failure> {
    match run.load(key).await {
        Ok(manifest) => Ok(Ok(manifest)),
        Err(error @ (StorageError::Manifest { .. } | StorageError::Corrupt { .. } | StorageError::TooLarge { .. })) => {
            Ok(Err(error))
        }
        Err(error) => Err(error.into()),
    }
}

async fn ls(run: &Run, key: Option<ManifestKey>, json: bool) -> Result<String, Failure> {
    let now = SystemTime::now();
    let mut rows = Vec::new();
    for key in keys(run, key).await? {
        rows.push((key, load(run, key).await?));
    }
    if json {
        let checkpoints: Vec<Json> = rows.iter().map(|(key, row)| ls_json(*key, row)).collect();
        return Ok(pretty(&json!({ "run": run.url(), "checkpoints": checkpoints })));
    }
    let mut table = vec![["CHECKPOINT", "KIMG", "PIXELS", "LOD", "SIZE", "WORKERS", "AGE"].map(str::to_owned)];
    for (key, row) in &rows {
        let unknown = || "?".to_owned();
        let level = row.as_ref().ok().and_then(level);
        table.push([
            short(*key),
            format!("{:.1}", key.images.kimg()),
            level.map_or_else(unknown, |level| level.resolution.to_string()),
            level.map_or_else(unknown, |level| format!("{:.2}", level.lod)),
            row.as_ref().map_or_else(|_| unknown(), |m| size(m.bytes())),
            row.as_ref().map_or_else(|_| unknown(), |m| m.world.to_string()),
            row.as_ref().map_or_else(|_| unknown(), |m| age(m.created, now)),
        ]);
    }
    let mut text = columns(&table);
    for (_, row) in &rows {
        if let Err(error) = row {
            let _ = writeln!(text, "cannot be read: {error}");
        }
    }
    Ok(text)
}

fn ls_json(key: ManifestKey, row: &Result<Manifest, StorageError>) -> Json {
    let mut line = json!({
        "key": key, "images": key.images, "kimg": key.images.kimg(), "generation": key.generation,
    });
    let more = match row {
        Err(error) => json!({ "error": error.to_string() }),
        Ok(m) => {
            let level = level(m);
            json!({
                "resolution": level.map(|l| l.resolution), "lod": level.map(|l| l.lod), "bytes": m.bytes(),
                "world": m.world, "created": m.created, "writer": m.writer,
            })
        }
    };
    if let (Some(line), Json::Object(more)) = (line.as_object_mut(), more) {
        line.extend(more);
    }
    line
}

async fn show(run: &Run, key: Option<ManifestKey>, json: bool) -> Result<String, Failure> {
    let (manifest, skipped) = match key {
        Some(key) => (run.load(key).await?, Vec::new()),
        None => {
            let newest = run.newest_good(false).await?;
            match newest.manifest {
                Some(manifest) => (manifest, newest.skipped),
                None if newest.skipped.is_empty() => return Err(nothing(run).await),
                None => return Err(all_damaged(run, &newest.skipped)),
            }
        }
    };
    if json {
        let skipped: Vec<Json> = skipped.iter().map(|s| json!({ "key": s.key, "why": s.why })).collect();
        return Ok(pretty(&json!({
            "run": run.url(), "key": manifest.key(), "state_hash": manifest.state_hash(), "bytes": manifest.bytes(),
            "manifest": manifest, "passed_over": skipped,
        })));
    }
    let mut text = String::new();
    for Skipped { key, why } in &skipped {
        let _ = writeln!(text, "passed over   {}: {why}", short(*key));
    }
    for (name, value) in facts(run, &manifest) {
        let _ = writeln!(text, "{name:<13} {value}");
    }
    text.push('\n');
    let mut table = vec![["PART", "TENSORS", "SIZE", "BLOB"].map(str::to_owned)];
    for part in &manifest.parts {
        let blob = part.blob.hash.to_string();
        table.push([part.name.clone(), part.tensors.len().to_string(), size(part.blob.bytes), blob[..16].to_owned()]);
    }
    Ok(text + &columns(&table))
}

fn all_damaged(run: &Run, skipped: &[Skipped]) -> Failure {
    let each: Vec<String> = skipped.iter().map(|s| format!("\n  {}: {}", short(s.key), s.why)).collect();
    Failure::new(Exit::Storage, format!("{} holds no checkpoint that can be restored:{}", run.url(), each.concat()))
}

/// What a person wants to know of a checkpoint.
fn facts(run: &Run, manifest: &Manifest) -> Vec<(&'static str, String)> {
    let (config, cursor) = (&manifest.config, &manifest.cursor);
    let level = level(manifest).map_or_else(String::new, |l| format!(", {} px, lod {:.3}", l.resolution, l.lod));
    let map = |pairs: Vec<String>| if pairs.is_empty() { "none".to_owned() } else { pairs.join(", ") };
    let knee = cursor.last_knee.map_or_else(|| "none".to_owned(), |(floor, ceil)| format!("({floor}, {ceil})"));
    vec![
        ("checkpoint", format!("{}/{}", run.url(), manifest.key())),
        ("state_hash", manifest.state_hash().to_string()),
        ("model", summary(config)),
        ("progress", format!("{:.1} of {}{level}", ImagesSeen(cursor.images).kimg(), config.train.length())),
        (
            "cursor",
            format!(
                "images {}, cycle at {}, repeat {}, phase {}, knee {knee}, skipped updates {}",
                cursor.images, cursor.cycle_images, cursor.repeat, cursor.phase, cursor.skipped_updates
            ),
        ),
        ("optimizers", map(cursor.optimizer_steps.iter().map(|(k, v)| format!("{k} {v} steps")).collect())),
        ("best", map(cursor.best.iter().map(|(k, v)| format!("{k} {v}")).collect())),
        ("data", data(&manifest.dataset)),
        ("environment", map(manifest.environment.iter().map(|(k, v)| format!("{k} {v}")).collect())),
        ("parent", manifest.parent.map_or_else(|| "none".to_owned(), short)),
        (
            "written",
            format!(
                "{} ago by {} of {} (generation {}), program {}",
                age(manifest.created, SystemTime::now()),
                manifest.writer,
                manifest.world,
                manifest.generation.0,
                manifest.program
            ),
        ),
        ("size", format!("{} in {} parts", size(manifest.bytes()), manifest.parts.len())),
    ]
}

fn data(dataset: &Dataset) -> String {
    match dataset.is_known() {
        true => format!("{} images, fingerprint {}", dataset.images, dataset.fingerprint),
        false => "none yet: the weights came from elsewhere".to_owned(),
    }
}

fn summary(config: &RunConfig) -> String {
    let family = config.model.family();
    let determinism = format!("{:?}", config.train.determinism).to_lowercase();
    format!("{family}, {} px, seed {}, {determinism}", config.model.resolution(), config.seed)
}

async fn verify(run: &Run, key: Option<ManifestKey>, json: bool) -> Result<(String, Exit), Failure> {
    let mut verifier = Verifier::new(run.clone());
    let mut findings: Vec<(ManifestKey, Vec<Damage>)> = Vec::new();
    for key in keys(run, key).await? {
        let damage = match load(run, key).await? {
            Ok(manifest) => {
                if io::stderr().is_terminal() {
                    eprintln!("reading {} ({})", short(key), size(manifest.bytes()));
                }
                verifier.check(&manifest).await?
            }
            Err(error) => vec![Damage { part: "manifest".into(), why: error.to_string() }],
        };
        findings.push((key, damage));
    }
    let exit = if findings.iter().all(|(_, damage)| damage.is_empty()) { Exit::Ok } else { Exit::Storage };
    if json {
        let line = |(key, damage): &(ManifestKey, Vec<Damage>)| {
            let damage: Vec<Json> = damage.iter().map(|d| json!({ "part": d.part, "why": d.why })).collect();
            json!({ "key": key, "sound": damage.is_empty(), "damage": damage })
        };
        let checkpoints: Vec<Json> = findings.iter().map(line).collect();
        return Ok((pretty(&json!({ "run": run.url(), "checkpoints": checkpoints })), exit));
    }
    let mut text = String::new();
    for (key, damage) in &findings {
        let _ = writeln!(text, "{}  {}", short(*key), if damage.is_empty() { "sound" } else { "DAMAGED" });
        for damage in damage {
            let _ = writeln!(text, "  {damage}");
        }
    }
    Ok((text, exit))
}

/// Where the growth stood. A manifest comes from outside, so what the schedule takes for granted is checked first.
fn level(manifest: &Manifest) -> Option<Level> {
    let resolution = manifest.config.model.resolution();
    let growth = &manifest.config.train.growth;
    let lengths = [growth.stable_kimg, growth.fade_kimg];
    let sound = resolution.is_power_of_two()
        && growth.start_resolution.is_power_of_two()
        && lengths.iter().all(|kimg| kimg.is_finite() && *kimg >= 0.0);
    sound.then(|| growth.level(resolution, ImagesSeen(manifest.cursor.cycle_images)))
}

/// `000000060000-000001`
fn short(key: ManifestKey) -> String {
    key.to_string().trim_start_matches(ManifestKey::FOLDER).trim_end_matches(".json").to_owned()
}

fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

fn age(created: u64, now: SystemTime) -> String {
    let now = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    match now.saturating_sub(created) {
        s @ 0..120 => format!("{s} s"),
        s @ 120..7200 => format!("{} min", s / 60),
        s @ 7200..172_800 => format!("{} h", s / 3600),
        s => format!("{} d", s / 86_400),
    }
}

/// Left-aligned columns, two blanks apart.
fn columns<const N: usize>(rows: &[[String; N]]) -> String {
    let width = |i: usize| rows.iter().map(|row| row[i].chars().count()).max().unwrap_or(0);
    let widths: [usize; N] = std::array::from_fn(width);
    let line = |row: &[String; N]| {
        let cells: Vec<String> = row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        format!("{}\n", cells.join("  ").trim_end())
    };
    rows.iter().map(line).collect()
}

fn pretty(json: &Json) -> String {
    format!("{json:#}\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use common::checkpoint::{FORMAT, Part, TrainerCursor};
    use common::config::resolved::S3;
    use common::config::{self, Base, Layers};
    use common::ids::Generation;
    use std::collections::BTreeMap;
    use std::path::Path;

    /// An empty safetensors file.
    const EMPTY: &[u8] = b"\x02\0\0\0\0\0\0\0{}";

    struct Fixture {
        folder: tempfile::TempDir,
        newest: Manifest,
    }

    impl Fixture {
        fn url(&self) -> String {
            self.folder.path().join("toy").to_string_lossy().into_owned()
        }

        fn place(&self, json: bool) -> Place {
            Place { url: self.url(), json, s3: S3Args::default() }
        }

        fn blob(&self) -> std::path::PathBuf {
            let hash = self.newest.parts[0].blob.hash;
            self.folder.path().join(format!("toy/blobs/{hash}.safetensors"))
        }
    }

    async fn ask(command: &CheckpointsCommand) -> Result<(String, Exit), Failure> {
        let mut out = Vec::new();
        let exit = run(command, &mut out).await?;
        Ok((String::from_utf8(out).unwrap(), exit))
    }

    fn config() -> RunConfig {
        let text = "name = \"toy\"\n[data]\nsource = \"/x\"\n";
        let base = Base::File { path: "", text, folder: Path::new("/") };
        let layers = Layers { base, env: &[], set: &[], working_dir: Path::new("/") };
        config::resolve(&layers, 1).unwrap().config
    }

    /// A run with two checkpoints.
    async fn fixture() -> Fixture {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().to_string_lossy(), &S3::default()).unwrap();
        let run = store.run("toy").unwrap();
        let blob = run.put_blob(EMPTY.into(), None).await.unwrap().blob;
        let manifest = |images| Manifest {
            format: FORMAT,
            run: "toy".into(),
            generation: Generation(1),
            writer: "worker-0".into(),
            nonce: storage::fresh_nonce().unwrap(),
            parent: None,
            created: 0,
            program: "0.1.0".into(),
            world: 2,
            config: config(),
            cursor: TrainerCursor { images, cycle_images: images, ..TrainerCursor::default() },
            dataset: Dataset::default(),
            environment: BTreeMap::new(),
            parts: vec![Part { name: "g.4".into(), blob, tensors: vec![] }],
        };
        run.commit(&manifest(1000)).await.unwrap();
        run.commit(&manifest(2000)).await.unwrap();
        Fixture { folder, newest: manifest(2000) }
    }

    #[tokio::test]
    async fn ls_lists_newest_first_in_both_forms() {
        let fixture = fixture().await;
        let (text, exit) = ask(&CheckpointsCommand::Ls(fixture.place(false))).await.unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!((exit, lines.len()), (Exit::Ok, 3), "{text}");
        assert!(lines[0].starts_with("CHECKPOINT           KIMG  PIXELS"), "{text}");
        assert!(lines[1].starts_with("000000002000-000001  2.0   4 "), "{text}");

        let (text, _) = ask(&CheckpointsCommand::Ls(fixture.place(true))).await.unwrap();
        let json: Json = serde_json::from_str(&text).unwrap();
        assert_eq!(json["checkpoints"][0]["key"], "manifests/000000002000-000001.json");
        assert_eq!(json["checkpoints"][1]["bytes"], EMPTY.len());
    }

    #[tokio::test]
    async fn show_takes_the_newest_or_the_one_named() {
        let fixture = fixture().await;
        let hash = fixture.newest.state_hash().to_string();
        let (text, _) = ask(&CheckpointsCommand::Show(fixture.place(false))).await.unwrap();
        assert!(text.contains(&format!("state_hash    {hash}")) && text.contains("g.4"), "{text}");

        let mut place = fixture.place(true);
        place.url += "/manifests/000000001000-000001.json";
        let json: Json = serde_json::from_str(&ask(&CheckpointsCommand::Show(place)).await.unwrap().0).unwrap();
        assert_eq!(json["manifest"]["cursor"]["images"], 1000);
        assert_ne!(json["state_hash"], hash);
    }

    #[tokio::test]
    async fn verify_names_the_damaged_part_and_says_so_by_its_code() {
        let fixture = fixture().await;
        let (text, exit) = ask(&CheckpointsCommand::Verify(fixture.place(false))).await.unwrap();
        assert_eq!((exit, text.matches("sound").count()), (Exit::Ok, 2), "{text}");

        let mut altered = EMPTY.to_vec();
        altered[8] = b' ';
        std::fs::write(fixture.blob(), altered).unwrap();
        std::fs::write(fixture.folder.path().join("toy/manifests/000000001000-000001.json"), "{}").unwrap();
        let (text, exit) = ask(&CheckpointsCommand::Verify(fixture.place(false))).await.unwrap();
        assert_eq!(exit, Exit::Storage);
        assert!(text.contains("part 'g.4'") && text.contains("part 'manifest'"), "{text}");
        let (json, exit) = ask(&CheckpointsCommand::Verify(fixture.place(true))).await.unwrap();
        let json: Json = serde_json::from_str(&json).unwrap();
        assert_eq!((exit, &json["checkpoints"][0]["damage"][0]["part"]), (Exit::Storage, &json!("g.4")));

        let (text, exit) = ask(&CheckpointsCommand::Ls(fixture.place(false))).await.unwrap();
        assert!(exit == Exit::Ok && text.contains("cannot be read"), "{text}");
        std::fs::remove_file(fixture.blob()).unwrap();
        let failure = ask(&CheckpointsCommand::Show(fixture.place(false))).await.unwrap_err();
        assert!(failure.exit == Exit::Storage && failure.message.contains("no checkpoint that can be restored"));
    }

    #[tokio::test]
    async fn what_is_not_there_is_said_with_what_is() {
        let fixture = fixture().await;
        for (name, hint) in [("toi", "has: toy"), ("no/such/folder/toy", "does not exist")] {
            let url = fixture.folder.path().join(name).to_string_lossy().into_owned();
            for command in [CheckpointsCommand::Ls, CheckpointsCommand::Show, CheckpointsCommand::Verify] {
                let place = Place { url: url.clone(), ..fixture.place(false) };
                let failure = ask(&command(place)).await.unwrap_err();
                assert_eq!(failure.exit, Exit::Storage);
                assert!(failure.message.contains(hint), "{}", failure.message);
            }
        }
        assert!(!fixture.folder.path().join("no").exists(), "reading made a folder");
    }

    #[test]
    fn a_schedule_from_outside_does_not_panic() {
        let mut manifest = Manifest {
            format: FORMAT,
            run: "toy".into(),
            generation: Generation(1),
            writer: "w".into(),
            nonce: "n".into(),
            parent: None,
            created: 0,
            program: String::new(),
            world: 1,
            config: config(),
            cursor: TrainerCursor::default(),
            dataset: Dataset::default(),
            environment: BTreeMap::new(),
            parts: vec![],
        };
        assert!(level(&manifest).is_some());
        for start in [0, 3, 1 << 31] {
            manifest.config.train.growth.start_resolution = start;
            let _ = level(&manifest);
        }
        manifest.config.train.growth.start_resolution = 4;
        manifest.config.train.growth.stable_kimg = f64::NAN;
        assert!(level(&manifest).is_none());
    }

    #[test]
    fn sizes_and_ages_are_readable() {
        assert_eq!([0, 1023, 1536, 650 << 20].map(size), ["0 B", "1023 B", "1.5 KiB", "650.0 MiB"]);
        let at = |seconds: u64| age(1000, UNIX_EPOCH + Duration::from_secs(1000 + seconds));
        assert_eq!([5, 600, 7200, 200_000].map(at), ["5 s", "10 min", "2 h", "2 d"]);
        assert_eq!(age(u64::MAX, UNIX_EPOCH), "0 s");
    }

    #[test]
    fn flags_describe_a_store() {
        #[derive(clap::Parser)]
        struct Line {
            #[command(subcommand)]
            command: CheckpointsCommand,
        }
        let line = "x verify s3://b/r --json --s3-endpoint http://127.0.0.1:1 --s3-path-style --s3-region eu";
        let CheckpointsCommand::Verify(place) = <Line as clap::Parser>::parse_from(line.split(' ')).command else {
            panic!("another command")
        };
        let s3 = place.s3.resolve().unwrap();
        assert!(place.json && s3.path_style);
        assert_eq!(s3.endpoint.as_deref(), Some("http://127.0.0.1:1"));
        assert_eq!(s3.region.as_deref(), Some("eu"));
    }
}
