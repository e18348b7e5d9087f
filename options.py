"""Every option of SEAL on one screen: the two recipes as data, and the command line that may override any number."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Recipe:
    """The numbers of the losses. Fields are flags of the same name; each comment says what the number is."""

    # L_SME, Eq. (8)-(9)
    sme_attention: bool  # p of a video weighs each proposal with its attention A (Eq. 9), or not
    sme_moderate: float  # factor of the moderate-confidence mean, beside lambda(t) = 1 - t/T
    sme_schedule: str  # its weight lambda_1: "linear" max(0, 1 - t/until) or "exp" exp(-0.05 t/until) (1 - exp(-10 t/until))
    sme_until: int  # epoch from (linear) or after (exp) which lambda_1 is 0
    # L_pc, Eq. (10)
    gamma: float  # pseudo-true instances: A >= gamma * max A
    pc_centre: float  # factor of the centre term
    pc_distance: float  # factor of the d/I term
    pc_penalty: float  # factor of the penalty delta
    pc_all_pairs: bool  # centre term over all pairs (score i, geometry j) / V instead of i = j
    lambda_pc: float  # lambda_2
    # L_sc, Eq. (11)-(13)
    st_first_class: bool  # first class of the video only, and one mean over all N_c of the batch
    alpha_start: float  # alpha(t) = alpha_start + alpha_gain * t / alpha_epochs
    alpha_gain: float
    alpha_epochs: int
    sc_decay: float  # lambda_3 = exp(-t / sc_decay) up to epoch sc_until, then 0
    sc_until: int


RECIPES = {
    "paper": Recipe(
        sme_attention=True,
        sme_moderate=1.0,
        sme_schedule="linear",
        sme_until=30,
        gamma=0.9,
        pc_centre=1.0,
        pc_distance=1.0,
        pc_penalty=1.0,
        pc_all_pairs=False,
        lambda_pc=1.5,
        st_first_class=False,
        alpha_start=0.3,
        alpha_gain=0.2,
        alpha_epochs=50,
        sc_decay=8.0,
        sc_until=50,
    ),
    "release": Recipe(
        sme_attention=False,
        sme_moderate=0.5,
        sme_schedule="exp",
        sme_until=160,
        gamma=0.8,
        pc_centre=0.01,
        pc_distance=0.6,
        pc_penalty=9.0,
        pc_all_pairs=True,
        lambda_pc=3.4,
        st_first_class=True,
        alpha_start=0.3,
        alpha_gain=0.2,
        alpha_epochs=70,
        sc_decay=8.0,
        sc_until=70,
    ),
}
