"""Tables of TeX commands: what they mean in answers."""

_names = str.split

LETTERS = frozenset(
    _names(
        "alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota kappa lambda mu nu xi omicron rho varrho "
        "sigma tau upsilon phi varphi chi psi omega Gamma Delta Theta Lambda Xi Pi Sigma Upsilon Phi Psi Omega ell hbar "
        "nabla partial triangle angle"
    )
)
"""Commands that are letters."""

DECORATIONS = frozenset(
    _names("overline underline bar vec hat tilde dot ddot widehat overrightarrow mathcal mathbb mathscr mathfrak")
)
"""Commands for signs over or under a letter, which make it another letter."""

FONTS = frozenset(
    _names(
        "text textbf textit textrm textnormal mathbf mathit mathrm mathsf mathtt boldsymbol bm mbox operatorname rm bf "
        "emph textsf texttt textsc textup ensuremath"
    )
)
"""Commands for fonts: letters in them stay the same."""

SYNONYMS = {
    "dfrac": "frac", "tfrac": "frac", "cfrac": "frac", "dbinom": "binom", "tbinom": "binom", "leq": "le", "leqslant": "le",
    "leqq": "le", "geqq": "ge", "nicefrac": "frac", "sfrac": "frac", "textdollar": "$", "pounds": "£", "euro": "€",
    "yen": "¥",
    "geq": "ge", "geqslant": "ge", "neq": "ne", "lt": "<", "gt": ">", "varnothing": "emptyset", "empty": "emptyset",
    "surd": "sqrt", "lbrace": "{", "rbrace": "}", "lbrack": "[", "rbrack": "]", "langle": "(", "rangle": ")", "lvert": "|",
    "rvert": "|", "vert": "|", "mid": "|", "lVert": "|", "rVert": "|", "R": "mathbb{R}", "N": "mathbb{N}", "Z": "mathbb{Z}",
    "Q": "mathbb{Q}", "reals": "mathbb{R}", "colon": ":", "thinspace": " ", "enspace": " ", "space": " ", "tg": "tan",
    "ctg": "cot", "arctg": "arctan", "sh": "sinh", "ch": "cosh", "degree": "^\\circ ", "implies": "Rightarrow",
    "varepsilon": "epsilon", "varphi": "phi", "vartheta": "theta", "varrho": "rho", "bigcup": "cup", "bigcap": "cap",
    "land": "wedge", "lor": "vee", "blank": "",
}  # fmt: skip
"""Commands that say the same, without their backslash; what begins with a letter or a brace of a set gets it back."""
