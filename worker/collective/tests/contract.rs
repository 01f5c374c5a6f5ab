//! The contract of a collective, against every backend that this crate has.

mod group;

use collective::{Collective, CollectiveError, Faulty, How, Part, Solo, Tcp, contract};
use group::{FORMING, form, listeners, members};
use std::{
    sync::Barrier,
    time::{Duration, Instant},
};

/// A formed group.
fn tcp(world: usize) -> Vec<Tcp> {
    let mut listeners = listeners(world);
    let members = members(&listeners, 1);
    form(&mut listeners, members, FORMING).into_iter().map(|member| member.expect("forms")).collect()
}

fn boxed<C: Collective + 'static>(members: Vec<C>) -> contract::Group {
    members.into_iter().map(|member| Box::new(member) as Box<dyn Collective>).collect()
}

#[test]
fn solo_keeps_the_contract() {
    contract::suite(1, &|| boxed(vec![Solo::new(7)]));
}

#[test]
fn tcp_alone_keeps_the_contract() {
    contract::suite(1, &|| boxed(tcp(1)));
}

#[test]
fn tcp_of_two_keeps_the_contract() {
    contract::suite(2, &|| boxed(tcp(2)));
}

#[test]
fn tcp_of_three_keeps_the_contract() {
    contract::suite(3, &|| boxed(tcp(3)));
}

#[test]
fn tcp_of_four_keeps_the_contract() {
    contract::suite(4, &|| boxed(tcp(4)));
}

#[test]
fn faulty_without_faults_keeps_the_contract() {
    contract::suite(2, &|| boxed(tcp(2).into_iter().map(Faulty::new).collect()));
}

#[test]
fn a_planned_failure_is_an_abort_to_the_others() {
    let mut members = tcp(3).into_iter().map(Faulty::new).collect::<Vec<_>>();
    let failing = members.remove(1).fail_at(1);
    members.insert(1, failing);
    // A failure that comes right after a call may overtake the call's end on other ranks; here it does not.
    let all_have_ended_call_0 = Barrier::new(3);
    let outcomes = contract::together(&mut boxed(members), |member| {
        member.barrier().expect("call 0 is not planned to fail");
        all_have_ended_call_0.wait();
        (member.barrier(), member.barrier())
    });
    for (rank, (planned, after)) in outcomes.iter().enumerate() {
        match planned {
            Err(CollectiveError::Aborted) => assert_eq!(rank, 1),
            Err(CollectiveError::PeerLost { rank: 1, how: How::Aborted }) => assert_ne!(rank, 1),
            other => panic!("rank {rank}: {other:?}"),
        }
        assert!(after.is_err());
    }
}

#[test]
fn a_planned_loss_names_the_planned_peer() {
    let [a, b] = <[_; 2]>::try_from(tcp(2)).unwrap();
    let outcomes = contract::together(&mut boxed(vec![Faulty::new(a).lose_peer_at(0, 1), Faulty::new(b)]), |member| {
        member.all_reduce_sum_f32(&mut [1.0])
    });
    assert!(matches!(outcomes[0], Err(CollectiveError::PeerLost { rank: 1, how: How::Closed })), "{outcomes:?}");
    assert!(matches!(outcomes[1], Err(CollectiveError::PeerLost { rank: 0, how: How::Aborted })), "{outcomes:?}");
}

#[test]
fn a_planned_delay_holds_the_others_up() {
    let delay = Duration::from_millis(50);
    let [a, b] = <[_; 2]>::try_from(tcp(2)).unwrap();
    let begun = Instant::now();
    contract::together(&mut boxed(vec![Faulty::new(a), Faulty::new(b).delay_at(0, delay)]), |member| {
        member.barrier().expect("late, but there");
        assert!(begun.elapsed() >= delay);
    });
}

#[test]
fn ranks_that_make_different_calls_are_told() {
    let outcomes = contract::together(&mut boxed(tcp(3)), |member| match member.rank() {
        2 => member.barrier(),
        _ => member.all_reduce_sum_f32(&mut [1.0; 8]),
    });
    assert!(outcomes.iter().all(Result::is_err));
    assert!(outcomes.iter().any(|o| matches!(o, Err(CollectiveError::Protocol { .. }))), "{outcomes:?}");
}

#[test]
fn ranks_that_disagree_on_a_length_or_a_root_are_told() {
    for len in [4, 100_000] {
        let outcomes = contract::together(&mut boxed(tcp(2)), |member| {
            member.all_reduce_sum_f32(&mut vec![1.0; len + member.rank() as usize])
        });
        assert!(outcomes.iter().any(|o| matches!(o, Err(CollectiveError::Protocol { .. }))), "{outcomes:?}");
    }
    let outcomes = contract::together(&mut boxed(tcp(2)), |member| {
        member.broadcast(Part::Gives(&[&[0; 9]]), member.rank(), &[1 - member.rank()])
    });
    assert!(outcomes.iter().any(|o| matches!(o, Err(CollectiveError::Protocol { .. }))), "{outcomes:?}");
}

#[test]
fn ranks_that_disagree_on_whom_a_broadcast_is_for_are_told() {
    let outcomes = contract::together(&mut boxed(tcp(3)), |member| match member.rank() {
        0 => member.broadcast(Part::Gives(&[&[0; 9]]), 0, &[1]),
        1 => member.broadcast(Part::Hears(9), 0, &[2]),
        _ => member.broadcast(Part::Takes(&mut [&mut [0; 9]]), 0, &[2]),
    });
    assert!(outcomes[1..].iter().all(Result::is_err), "{outcomes:?}");
    assert!(outcomes.iter().any(|o| matches!(o, Err(CollectiveError::Protocol { .. }))), "{outcomes:?}");
}

#[test]
fn runs_of_groups_that_do_not_adjoin_are_told() {
    for (first, second) in [(0..1, 2..3), (0..2, 1..3), (0..1, 1..2)] {
        let outcomes = contract::together(&mut boxed(tcp(2)), |member| {
            let run = if member.rank() == 0 { first.clone() } else { second.clone() };
            let mut sum = collective::TreeSum::new(3, run.clone(), 1).unwrap();
            run.for_each(|_| sum.push(&[1.0]).unwrap());
            member.tree_sum_f32(&sum, &mut [0.0])
        });
        assert!(
            outcomes
                .iter()
                .all(|o| matches!(o, Err(CollectiveError::Protocol { .. } | CollectiveError::PeerLost { .. })))
        );
    }
}
