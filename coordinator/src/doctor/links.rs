//! What hosts and the ways between them mean for a run. Pure.

use super::Finding;
use super::judge::{self, Worker};
use std::collections::BTreeSet;
use std::time::Duration;

/// Beyond this, lines of a run's hosts that stand beside each other are read wrongly.
const SKEW: f64 = 1.0;
/// And beyond this, what one host signs or certifies is not good at another.
const SKEW_MAX: f64 = 60.0;
/// What to do about a clock.
const SET: &str = "set its clock: let chrony or systemd-timesyncd keep it on every host";
/// A way that carries less than this part of what the best one does is slow.
const SLOW: f64 = 0.5;
/// A way that takes longer than this many times what the shortest takes is long, unless it is short all the same.
const LONG: f64 = 4.0;
const SHORT: Duration = Duration::from_millis(1);
const MB: f64 = 1e6;

/// Whom each meets in which round: everybody meets everybody once, and nobody two at a time.
#[must_use]
pub fn rounds(hosts: usize) -> Vec<Vec<(usize, usize)>> {
    // all but the last turn around a table; where they are odd in number, the last one's place is empty
    let seats = hosts + hosts % 2;
    let turning = seats.saturating_sub(1);
    (0..turning)
        .map(|round| {
            let at = |place: usize| if place == 0 { turning } else { (round + place - 1) % turning };
            (0..seats / 2)
                .map(|place| (at(place), at(seats - 1 - place)))
                .map(|(one, other)| (one.min(other), one.max(other)))
                .filter(|(_, other)| *other < hosts)
                .collect()
        })
        .collect()
}

/// What hosts are called, by name and address: one name may stand for several.
pub fn names(hosts: &[(String, String)]) -> Vec<String> {
    let ip = |address: &str| address.rsplit_once(':').map_or(address, |(ip, _)| ip).to_owned();
    let called: [fn(&str, &str, &str) -> String; 3] = [
        |name, _, _| name.to_owned(),
        |name, ip, _| format!("{name} at {ip}"),
        |name, _, address| format!("{name} at {address}"),
    ];
    let of = |called: fn(&str, &str, &str) -> String| {
        hosts.iter().map(move |(name, address)| called(name, &ip(address), address)).collect::<Vec<_>>()
    };
    let distinct = |names: &Vec<String>| names.iter().collect::<BTreeSet<_>>().len() == names.len();
    called.map(of).into_iter().find(distinct).unwrap_or_else(|| of(called[2]))
}

/// A way between two hosts.
#[derive(Clone, Debug, PartialEq)]
pub struct Link {
    /// Its ends.
    pub ends: (usize, usize),
    /// What was measured, or why nothing was.
    pub measured: Result<Measured, String>,
}

impl Link {
    fn has(&self, host: usize) -> bool {
        self.ends.0 == host || self.ends.1 == host
    }
}

/// What was measured between hosts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Measured {
    /// A small message there and back.
    pub way: Duration,
    /// Of this many bytes from each to each other.
    pub bytes: u64,
    /// So long did their sum take.
    pub sum: Duration,
}

impl Measured {
    /// Bits a second that a sum of two moves, each way at once.
    fn rate(self) -> f64 {
        8.0 * self.bytes as f64 / self.sum.as_secs_f64().max(1e-9)
    }
}

/// How far a host's clock is from this one's, in seconds; it may be wrong by the second number.
pub type Offset = (f64, f64);

/// Who came of those that were waited for.
pub fn arrivals(names: &[String], expected: u32, waited: Duration, invitation: &str) -> Finding {
    let came = names.join(", ");
    if names.len() == expected as usize {
        return Finding::good("hosts", format!("{expected} are here: {came}"));
    }
    let found = match names {
        [] => format!("none of {expected} came within {} s", waited.as_secs()),
        _ => format!("{} of {expected} came within {} s: {came}", names.len(), waited.as_secs()),
    };
    Finding::bad(
        "hosts",
        found,
        format!("run {invitation} on each of the others; a firewall must let them reach that port"),
    )
}

/// Who came and was refused: perhaps one of those that are waited for.
pub fn refused(count: u64, latest: &str) -> Finding {
    let times = if count == 1 { "once".to_owned() } else { format!("{count} times") };
    Finding::note(
        "refused",
        format!("{times} somebody was refused, the last one at {latest}"),
        "if that is one of the hosts, give it this command's token (GANFLEET_TOKEN) and credentials of the same authority".to_owned(),
    )
}

/// What a host said of itself: only what is not as it should be.
pub fn host(name: &str, findings: &Result<Worker, String>) -> Vec<Finding> {
    let found = judge::worker(findings, findings.as_ref().map_or(0, |worker| worker.devices as usize));
    found.into_iter().filter_map(|finding| finding.of(name)).collect()
}

/// Whether hosts compute alike.
pub fn alike(names: &[String], workers: &[Option<&Worker>]) -> Vec<Finding> {
    let differing = |what: &'static str, of: &dyn Fn(&Worker) -> String, remedy: &str| {
        let mut kinds: Vec<(String, Vec<&str>)> = Vec::new();
        for (name, worker) in names.iter().zip(workers) {
            let Some(worker) = worker else { continue };
            let kind = of(worker);
            match kinds.iter_mut().find(|(known, _)| *known == kind) {
                Some((_, of_it)) => of_it.push(name),
                None => kinds.push((kind, vec![name])),
            }
        }
        let text = || kinds.iter().map(|(kind, of_it)| format!("{kind} ({})", of_it.join(", "))).collect::<Vec<_>>();
        (kinds.len() > 1).then(|| Finding::note(what, text().join("; "), remedy))
    };
    let gpus = |worker: &Worker| format!("{} GPU{}", worker.devices, if worker.devices == 1 { "" } else { "s" });
    [
        differing("libtorch", &|worker| worker.libtorch.clone(), "give all hosts the same package: scripts/package"),
        differing(
            "vectors",
            &|worker| worker.isa.clone(),
            "sums differ in their last bits: train.determinism = \"bitwise\" needs hosts that are alike",
        ),
        differing(
            "GPUs",
            &gpus,
            "a step takes as long as the host with most work for each GPU: take hosts that are alike",
        ),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// Clocks, by this host's.
pub fn clocks(names: &[String], offsets: &[Option<Offset>]) -> Vec<Finding> {
    let mut found = Vec::new();
    let sure: Vec<f64> = offsets.iter().flatten().map(|(offset, _)| *offset).collect();
    let (least, most) =
        sure.iter().fold((f64::MAX, f64::MIN), |(least, most), offset| (least.min(*offset), most.max(*offset)));
    if sure.len() > 1 && sure.len() == names.len() && most - least < SKEW && least.abs().min(most.abs()) > SKEW {
        let direction = if least > 0.0 { "behind" } else { "ahead of" };
        let text = format!(
            "this host is {:.1} s {direction} the {} others, which agree",
            least.abs().min(most.abs()),
            sure.len()
        );
        let far = least.abs() > SKEW_MAX;
        return vec![if far { Finding::bad("clock", text, SET) } else { Finding::note("clock", text, SET) }];
    }
    let (mut worst, mut known) = (0.0f64, 0);
    for (name, offset) in names.iter().zip(offsets) {
        let Some((offset, doubt)) = offset else {
            let text = format!("{name} does not say what time it is");
            found.push(Finding::bad("clock", text, "is it still there? its own words say why it left"));
            continue;
        };
        known += 1;
        // what may be the way's is not the clock's
        let apart = (offset.abs() - doubt).max(0.0);
        worst = worst.max(apart);
        let direction = if *offset > 0.0 { "ahead of" } else { "behind" };
        let text = format!("{name} is {apart:.1} s {direction} this host");
        match apart {
            apart if apart > SKEW_MAX => {
                let text = format!("{text}: certificates and signed requests may be refused");
                found.push(Finding::bad("clock", text, SET));
            }
            apart if apart > SKEW => found.push(Finding::note("clock", text, SET)),
            _ => {}
        }
    }
    if found.is_empty() && known > 0 {
        found.push(Finding::good(
            "clock",
            format!("none is more than {:.0} ms from this host's", (worst * 1e3).ceil().max(1.0)),
        ));
    }
    found
}

/// The ways between hosts.
pub fn links(names: &[String], addresses: &[String], links: &[Link]) -> Vec<Finding> {
    let mut found = broken(names, addresses, links);
    let sound: Vec<_> = links.iter().filter_map(|link| Some((link, *link.measured.as_ref().ok()?))).collect();
    if sound.is_empty() {
        return found;
    }
    // where one of three hosts is slow, so are two of three ways: held against the best
    let (least, rate) = extremes(sound.iter().map(|(_, measured)| measured.rate()));
    let (way, _) = extremes(sound.iter().map(|(_, measured)| measured.way.as_secs_f64()));
    let count = found.len();
    let slow = |link: &Link| link.measured.as_ref().is_ok_and(|measured| measured.rate() < SLOW * rate);
    const REMEDY: &str = "every step waits for the slowest way: look at cable, port and interface (`ethtool`), and at what else uses them; \
                          --listen names another interface";
    let hosts = throughout(names.len(), links, &slow);
    let many = sound.iter().filter(|(link, _)| slow(link)).count();
    if hosts.len() > 1 {
        let plain: Vec<&str> = hosts.iter().map(|host| names[*host].as_str()).collect();
        let text = format!(
            "{many} of {} ways carry less than half of what the best does, {} to {}: all of {}",
            sound.len(),
            bits(least),
            bits(rate),
            plain.join(", ")
        );
        found.push(Finding::note("link", text, REMEDY));
        return found;
    }
    for host in &hosts {
        let its = sound.iter().filter(|(link, _)| link.has(*host));
        let (_, most) = extremes(its.map(|(_, measured)| measured.rate()));
        let text = format!("all ways of {}: {} at most, where others carry {}", names[*host], bits(most), bits(rate));
        found.push(Finding::note("link", text, REMEDY));
    }
    for (link, measured) in &sound {
        let ends = format!("{} - {}", names[link.ends.0], names[link.ends.1]);
        if slow(link) {
            if !hosts.iter().any(|host| link.has(*host)) {
                let text = format!("{ends}: {}, where others carry {}", bits(measured.rate()), bits(rate));
                found.push(Finding::note("link", text, REMEDY));
            }
        } else if measured.way.as_secs_f64() > LONG * way && measured.way > SHORT {
            let text =
                format!("{ends}: {:.2} ms there and back, where others take {:.2} ms", ms(measured.way), way * 1e3);
            found.push(Finding::note("link", text, "take hosts that stand together"));
        }
    }
    if found.len() == count {
        let (least, most) = extremes(sound.iter().map(|(_, measured)| measured.rate()));
        let (nearest, farthest) = extremes(sound.iter().map(|(_, measured)| ms(measured.way)));
        let plural = if sound.len() == 1 { "" } else { "s" };
        let text = format!(
            "{} way{plural}: {} to {}, {nearest:.2} to {farthest:.2} ms there and back",
            sound.len(),
            bits(least),
            bits(most)
        );
        found.push(Finding::good("links", text));
    }
    found
}

/// Hosts that nobody reaches, and then ways that are broken between others.
fn broken(names: &[String], addresses: &[String], links: &[Link]) -> Vec<Finding> {
    const REMEDY: &str = "workers listen on ports of the system's choice: a firewall between hosts must let those through; where a host has \
                          several addresses, name the right one: --listen IP";
    let apart = throughout(names.len(), links, &|link| link.measured.is_err());
    let mut found = Vec::new();
    for host in &apart {
        let of = |link: &&Link| link.has(*host);
        let why = links.iter().filter(of).find_map(|link| link.measured.as_ref().err()).map_or("", String::as_str);
        let text = format!("no other host meets {} at {}: {why}", names[*host], addresses[*host]);
        found.push(Finding::bad("link", text, REMEDY));
    }
    for link in links {
        let (one, other) = link.ends;
        if let (Err(why), false) = (&link.measured, apart.contains(&one) || apart.contains(&other)) {
            let text =
                format!("{} ({}) and {} ({}): {why}", names[one], addresses[one], names[other], addresses[other]);
            found.push(Finding::bad("link", text, REMEDY));
        }
    }
    found
}

/// Hosts of which every way is so; of one way alone nobody can say whose fault it is.
fn throughout(hosts: usize, links: &[Link], so: &dyn Fn(&Link) -> bool) -> Vec<usize> {
    let its = |host: usize| links.iter().filter(move |link| link.has(host));
    (0..hosts).filter(|host| its(*host).count() > 1 && its(*host).all(so)).collect()
}

/// What all hosts together need for a sum.
pub fn sum(hosts: usize, measured: &Result<Measured, String>, of: &str) -> Finding {
    match measured {
        Ok(measured) => {
            let text = format!(
                "{of} ({:.2} MB) among {hosts} hosts: {:.1} ms over TCP",
                measured.bytes as f64 / MB,
                ms(measured.sum)
            );
            Finding::good("sum", text)
        }
        Err(why) => {
            Finding::bad("sum", format!("{hosts} hosts do not meet all at once: {why}"), "see what is said of links")
        }
    }
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

fn bits(rate: f64) -> String {
    match rate {
        rate if rate >= 1e9 => format!("{:.1} Gbit/s", rate / 1e9),
        rate => format!("{:.1} Mbit/s", rate / 1e6),
    }
}

fn extremes(values: impl Iterator<Item = f64>) -> (f64, f64) {
    values.fold((f64::INFINITY, 0.0), |(least, most), value| (value.min(least), value.max(most)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Health::{self, Bad, Good, Note};

    fn some(count: usize) -> Vec<String> {
        (0..count).map(|host| format!("n{host}")).collect()
    }

    fn healths(found: &[Finding]) -> Vec<(&'static str, Health)> {
        for finding in found {
            assert_eq!(finding.health == Good, finding.remedy.is_none(), "what is not good has a remedy: {finding:?}");
        }
        found.iter().map(|finding| (finding.what, finding.health)).collect()
    }

    #[test]
    fn everybody_meets_everybody_once_and_nobody_two_at_a_time() {
        for hosts in 0..20 {
            let mut met = BTreeSet::new();
            for round in rounds(hosts) {
                let busy: BTreeSet<usize> = round.iter().flat_map(|(one, other)| [*one, *other]).collect();
                assert_eq!(busy.len(), 2 * round.len(), "{hosts}: {round:?}");
                for pair in round {
                    assert!(pair.0 < pair.1 && pair.1 < hosts && met.insert(pair), "{hosts}: {pair:?}");
                }
            }
            assert_eq!(met.len(), hosts * hosts.saturating_sub(1) / 2, "{hosts}");
            let fewest = (hosts + hosts % 2).saturating_sub(1);
            assert_eq!(rounds(hosts).len(), fewest, "{hosts}");
        }
    }

    #[test]
    fn hosts_of_one_name_are_told_apart_by_their_addresses() {
        let of = |names: [&str; 3]| self::names(&[0, 1, 2].map(|i| (names[i].to_owned(), format!("10.0.0.{i}:7"))));
        assert_eq!(of(["a", "b", "c"]), ["a", "b", "c"]);
        assert_eq!(of(["a", "b", "a"]), ["a at 10.0.0.0", "b at 10.0.0.1", "a at 10.0.0.2"]);
        let one = self::names(&[7, 8].map(|port| ("a".to_owned(), format!("10.0.0.1:{port}"))));
        assert_eq!(one, ["a at 10.0.0.1:7", "a at 10.0.0.1:8"]);
    }

    #[test]
    fn who_did_not_come_is_missed() {
        let of = |count| healths(&[arrivals(&some(count), 3, Duration::from_secs(60), "`worker doctor A`")])[0].1;
        assert_eq!((of(3), of(2), of(0)), (Good, Bad, Bad));
    }

    #[test]
    fn a_clock_is_held_against_ours_less_what_may_be_the_ways() {
        let of = |offset| healths(&clocks(&some(1), &[offset]))[0].1;
        assert_eq!(of(Some((0.9, 0.0))), Good);
        assert_eq!(of(Some((-1.2, 0.5))), Good, "it may be 0.7 s");
        assert_eq!(of(Some((-1.2, 0.1))), Note);
        assert_eq!((of(Some((61.0, 0.1))), of(None)), (Bad, Bad));
        let ours = clocks(&some(2), &[Some((100.0, 0.1)), Some((100.2, 0.1))]);
        assert!(ours.len() == 1 && ours[0].found.starts_with("this host is 100.0 s behind the 2 others"), "{ours:?}");
        let all = clocks(&some(3), &[Some((0.0, 0.1)), Some((-7.0, 0.1)), Some((0.1, 0.0))]);
        assert_eq!(all.len(), 1);
        assert!(all[0].found.contains("n1 is 6.9 s behind"), "{}", all[0].found);
    }

    fn link(one: usize, other: usize, mbit: f64, ms: f64) -> Link {
        let (bytes, way) = (1_000_000, Duration::from_secs_f64(ms / 1e3));
        let sum = Duration::from_secs_f64(8.0 / mbit);
        Link { ends: (one, other), measured: Ok(Measured { way, bytes, sum }) }
    }

    fn cut(one: usize, other: usize) -> Link {
        Link { ends: (one, other), measured: Err("cannot be reached".to_owned()) }
    }

    fn judged(hosts: usize, all: &[Link]) -> Vec<Finding> {
        let addresses: Vec<String> = (0..hosts).map(|host| format!("10.0.0.{host}:4000")).collect();
        let found = links(&some(hosts), &addresses, all);
        healths(&found);
        found
    }

    #[test]
    fn a_way_is_held_against_the_others() {
        let sound = judged(3, &[link(0, 1, 9000.0, 0.1), link(0, 2, 9500.0, 0.3), link(1, 2, 9200.0, 0.2)]);
        assert_eq!(healths(&sound), [("links", Good)]);
        assert_eq!(sound[0].found, "3 ways: 9.0 Gbit/s to 9.5 Gbit/s, 0.10 to 0.30 ms there and back");
        let slow = judged(3, &[link(0, 1, 9000.0, 0.1), link(0, 2, 95.0, 0.3), link(1, 2, 9200.0, 0.2)]);
        assert_eq!(healths(&slow), [("link", Note)]);
        assert!(slow[0].found.starts_with("n0 - n2: 95.0 Mbit/s, where others carry 9.2"), "{}", slow[0].found);
        let one = judged(3, &[link(0, 1, 9000.0, 0.1), link(0, 2, 95.0, 0.3), link(1, 2, 96.0, 0.2)]);
        assert_eq!(healths(&one), [("link", Note)], "one host, named once");
        assert!(
            one[0].found.starts_with("all ways of n2: 96.0 Mbit/s at most, where others carry 9.0"),
            "{}",
            one[0].found
        );
        let rates = |i: usize, j: usize| if i < 2 && j < 2 { 9200.0 } else { 95.0 };
        let ways = [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)].map(|(i, j)| link(i, j, rates(i, j), 0.1));
        let half = judged(4, &ways);
        assert_eq!(healths(&half), [("link", Note)], "two of four hosts");
        assert!(
            half[0].found.starts_with("5 of 6 ways carry less") && half[0].found.ends_with("all of n2, n3"),
            "{}",
            half[0].found
        );
        let far = judged(3, &[link(0, 1, 9000.0, 0.1), link(0, 2, 9000.0, 3.0), link(1, 2, 9200.0, 0.2)]);
        assert_eq!(healths(&far), [("link", Note)]);
        // a fifth of a millisecond is near, whatever the others are
        let near = judged(3, &[link(0, 1, 9000.0, 0.02), link(0, 2, 9000.0, 0.2), link(1, 2, 9200.0, 0.02)]);
        assert_eq!(healths(&near), [("links", Good)]);
    }

    #[test]
    fn a_host_that_nobody_reaches_is_named_once_and_other_broken_ways_one_by_one() {
        let apart = judged(3, &[cut(0, 1), cut(1, 2), link(0, 2, 900.0, 0.1)]);
        assert_eq!(healths(&apart), [("link", Bad), ("links", Good)]);
        assert!(apart[0].found.contains("meets n1 at 10.0.0.1:4000: cannot be reached"), "{}", apart[0].found);
        let one = judged(3, &[cut(0, 1), link(1, 2, 900.0, 0.1), link(0, 2, 900.0, 0.1)]);
        assert_eq!(healths(&one), [("link", Bad), ("links", Good)]);
        assert!(one[0].found.contains("n0 (10.0.0.0:4000) and n1"), "{}", one[0].found);
        assert_eq!(healths(&judged(2, &[cut(0, 1)])), [("link", Bad)]);
        assert_eq!(judged(1, &[]).len(), 0);
    }

    #[test]
    fn hosts_that_compute_differently_are_told_apart() {
        let worker = |isa: &str, devices| Worker { isa: isa.to_owned(), devices, ..Worker::default() };
        let (old, new) = (worker("AVX2", 8), worker("AVX512", 8));
        assert!(alike(&some(3), &[Some(&old), None, Some(&old)]).is_empty());
        let found = alike(&some(3), &[Some(&new), Some(&old), Some(&new)]);
        assert_eq!(healths(&found), [("vectors", Note)]);
        assert_eq!(found[0].found, "AVX512 (n0, n2); AVX2 (n1)");
        let few = worker("AVX2", 1);
        let found = alike(&some(2), &[Some(&old), Some(&few)]);
        assert_eq!(found[0].found, "8 GPUs (n0); 1 GPU (n1)");
    }
}
