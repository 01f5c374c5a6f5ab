//! Everybody's bytes straight to everybody: one step, for small things and for what differs from peer to peer.

use super::Flow;
use std::ops::Range;

/// Sends each peer its columns of `rows`, one row after the other, and takes in what each peer sends.
///
/// A barrier is an exchange of nothing: the headers alone tell that everybody is there.
pub(in crate::tcp) struct Exchange<'a> {
    pub(in crate::tcp) rank: usize,
    /// What this rank has.
    pub(in crate::tcp) rows: &'a [&'a [u8]],
    /// Which bytes of each row go to a peer.
    pub(in crate::tcp) columns: &'a dyn Fn(usize) -> Range<usize>,
    /// Where what comes belongs.
    pub(in crate::tcp) into: &'a mut [u8],
    /// Which bytes of `into` come from a peer.
    pub(in crate::tcp) spans: &'a dyn Fn(usize) -> Range<usize>,
}

impl Flow for Exchange<'_> {
    fn outbound(&self, peer: usize) -> Option<usize> {
        (peer != self.rank).then(|| self.rows.len() * (self.columns)(peer).len())
    }

    fn inbound(&self, peer: usize) -> Option<usize> {
        (peer != self.rank).then(|| (self.spans)(peer).len())
    }

    fn ready(&self, peer: usize, sent: usize) -> &[u8] {
        let columns = (self.columns)(peer);
        match sent.checked_div(columns.len()).and_then(|row| self.rows.get(row)) {
            Some(row) => &row[columns.start + sent % columns.len()..columns.end],
            None => &[],
        }
    }

    fn room(&mut self, peer: usize, received: usize) -> &mut [u8] {
        let span = (self.spans)(peer);
        &mut self.into[span.start + received..span.end]
    }
}

#[cfg(test)]
mod tests {
    use super::super::simulate;
    use super::*;

    #[test]
    fn every_peer_gets_its_columns_of_every_row() {
        // Rank r has r rows of 6 bytes; peer p gets the columns 2p..2p + 2 of each.
        let world = 3;
        let rows = (0..world)
            .map(|r| {
                (0..r).map(|i| (0..6).map(|c| (100 * r + 10 * i + c) as u8).collect::<Vec<_>>()).collect::<Vec<_>>()
            })
            .collect::<Vec<_>>();
        let views = rows.iter().map(|rows| rows.iter().map(Vec::as_slice).collect::<Vec<_>>()).collect::<Vec<_>>();
        let columns = |peer: usize| 2 * peer..2 * peer + 2;
        let spans = |peer: usize| [0..0, 0..2, 2..6][peer].clone();
        for piece in [1, 2, 3, 100] {
            let mut into = vec![[255u8; 6]; world];
            let mut flows = into
                .iter_mut()
                .enumerate()
                .map(|(rank, into)| Exchange { rank, rows: &views[rank], columns: &columns, into, spans: &spans })
                .collect::<Vec<_>>();
            simulate(&mut flows, || piece);
            drop(flows);
            assert_eq!(into[0], [100, 101, 200, 201, 210, 211]);
            assert_eq!(into[1][2..], [202, 203, 212, 213]);
            assert_eq!(into[2][..2], [104, 105]);
        }
    }
}
