"""Question files of MambaVL's authors and CSV twins: the same texts out of either, and nothing run."""

import base64
import lzma
import os
import pickle

import pytest

from datamodules.annotations.question_files import GENERIC, QuestionPair, read_questions
from datamodules.errors import DataError
from datamodules.synthetic.questions import _pickled_frame

# The first columns, the labels, and two questions per segment, as each release of pandas pickles them.
PICKLES = {
    "pandas 1.5.3, protocol 2": (
        "T>t<81poj4|NsC0{{TP$hy%+I><oJQ&j`o|pWnEda{i(51q;UdbNW=L7@uIMd~^^3InM`<tpWQJSHl!K?!~fJ6Kb<<?H3ZWP@l3b"
        "*GhGK1xYrR@n=LTEogbbKx#PFn68HIOiYZ)D{h09p@6V7jAC2YX^Lb(_>GwqZrtvI(NjH41O_LaSRSi(xc+H<3n)5y8rLjq7IC5("
        "&Yc}7M|oGTwAx0k9N_moA4G_yfDYy+w?`3PnfZS9r*{wgDU6>eQBQNGFO#4rV5CiUxm2t{Klap(SBXjZho-w>$4jb9+IHWa|MAc`"
        "p0XeF{jFVDbefyYe)T5(2)lmBWW7~Tqbtq-CB2rY;^v>*AwT_Z&mwKobLKqu8ZM)uHPqB!6Mr(K{j?v1vB}(}iR5?-r;Ckd@55%{"
        "#1_$ty-HAOPB39BVx3krX?F+$COSyND~x8GaAl#LYTo034ZIW&wzsO@x25bUIxIQSnu#g#i;7bEEXWjO7X}(!8E7zV_&)%?%i()!"
        "nNkFdrYb5(R#nxeyHvnXxe_x4MVCUnimQp3+H^_?WG^u$We5@t-{l`&Rr!Il;MOFEMVDW_+oK6|8wCi){Hp&Q8sFe;_L_qeeO2)t"
        "L>%~x3P(BSjn)ot&D}HR5t4|JS;V9v_mQ*ElaPKYCkTQ~LrRPeQ!KGlavZbI^AB`~zeFnnM@X?z0f!l%M`*jf?`xVd7(s#_Tk2G7"
        "QzgNSk6VJh^A!nM)?m4kntemZrvN>!1vg<FKo#pYqN(OXb6_};1|(Ba#IQorM>8QMr0S|SS+FII+M?{p8WC?V^KrMZ`S#$q(#x<O"
        "oCShP)hh)CH&@G>D+3cuEakWYmPL!NfgqWvs_`*$WM06}2b!)$`g61)4)i2k=4#QYyH6k1x+o!Wq56`7Ey`W!ci3Q!&Aus7J>m*{"
        "w~;J8yW$peX;U#mhwg=<12O-n3Q%R-10_rt@~1ZK;RS%@1!a~;1l57p_5-x*i8Su=e`{8za!!m!J`wBAY_8Rf5}A1(wuOB{X=;Op"
        "(}mFpS)hJ040AC*xnJ1hBL#gzmX~dQJUhs(mnnh185BM21p{RfM7A;`t;JQLE4-Ww_&u=KiO~!z|M5h!um"
    ),
    "pandas 1.5.3, protocol 4, narration_id as a column": (
        "T>t<81poj4|NsC0{{TP%4tY1dd1<8`eDa%n3ZHyq*C%m&$!8@L6EY=~L}D23T{AEG@vuyozWMz=V%<ghXV_-0iks=-`4BuV+T#A^"
        "l$}EfdY`*u?p?Z2S?0TGhQ=if4`Ua%nub%$Fo`KOl>)_w981#Z4-RnyCjbHXX`I!Lufyae6swP>ILi~3@#r?rAbLs12Drfo(gr?g"
        "QpnJVA=rtc^aXSiGT@h0D9Tx(OH6?il1@q^Tyr$!609VpS;9;FOBULns*PaXIUBsS$56CuFKzJ5M|wekg|O&U`P!dJj_q4BLWtbr"
        "jg3FbY%L_ktD8KhEIQVKeWZY3zD&TnpyQ8ByU%|xbjtnv@TC?tV7hXRPh+G;E<I5GVQOd&AvgLsb$kl&9*@3<Ea;NG*0upD)0=~&"
        "o=z_9>u>78#J0w`Z?6?JzlH20eBq-7YE%bpl0&ITWWnxBZtCGYiwQ{dFP^4VV=6YPy!@)d;`*lr1lwh$w5hYBePFWyYOcZPjK3Mv"
        "w(Du|Y}}WJg+@9UK*(XxMo!@7jZ;Q)h+V=-S9(GvKQQ182ON=yW+&#3(+e{s<|T`ro!D76rVK@GbS!37sSzCQ3J(@fjD<n|6$qN!"
        "s`9xMpC6D8afo`o4)o%Bzdh9Je%F=lIa-7{Hf=qDmPw5w<Y|kd!Z`bR0!oc{_iUs9T^{=+FVYkv@o7dneZrPQ17?bcaHwWDekW0f"
        "1Kd7A*j~ygM?}EV%YL$Efk>Y51k=n~`_}QH<=e=6;b)(Xd*!6(31mclqX5&)nZL<D<7p*m3f;O1oQB<DLE79v>vH%DLmc1i76LK_"
        "^awY2Kr*Nv;C;_G*bfKOVd%SX5WIHL3my}^=+Oq5-)R#-luIXvmZkAX2Au_rOcuQlcj{@W9dnwuqg&CMfzS?9*Ts#nZ?G)Wu3+us"
        "CsptatwP9Q|Jc1rWd"
    ),
    "pandas 2.2.3, protocol 5": (
        "T>t<81poj4|NsC0{{TP%PIX5i>V+tAk~aO|vF|OrfkxY2i|B}PVI7@M1IRu~p}>k}<bQ<GLT@nVulwSWl11*yZct^IL}NztAuhCG"
        "j5w48goVLMVb;+4(>pPz@O=r{2Rq&t2NdryS8n8ZIc32K=uws*tyX0!zsRIWM4T{5?0<Y$9#S;)C~QLD=$tH3y_7^27R~Y>0zEw$"
        ">0${a8($)9mFoHNMa0I^qrha;*2X$)reD16K$0$C9K`j55xvPr^;3#cCm!G^m6oIdpFIbY45{h}SVUXtmjVb`;<Wvn%4T*tz<S(3"
        "M1B9drN=q8&rP)L-u9GwOS=a(>=MoheoA!HR#?5itrfk~8IDFR_$>9~zeH8)mX2CB2TJwD2O5T$1SLQb2UB}jLF9xviKcKi8h)}k"
        "2Sy*?ZUm-;I{8Rx_TD*nPb|FVr8n+*cOYRp8Z3W4{L4E2xScjYSux<|-Mw2loE%3F#3py7#;5L|hW~rhkD1$xmi&R)=o+KW@3S4Q"
        "kozK#JfZhlh79O;^BmQnXd36at0n!V_Jd%59p;L7-5R=XxyAcGIlpXF^AU=a;{cNID#4943%Fozq(m!Nu#V<p#Oh&_FqWL$t7eub"
        "WJIJ<5io2msWk`T09u6IZ=ORa_+2vhwtTRZ-7OJ;M{sy<FE^2caB^$UUwXh2u}6-?T}r<}wqk(c5FTzrMe;$Jw}CKvfl{gm+CrrM"
        "IS@H@(3;?@Nn3^_CMg_Igw<@;d{55I;Y9}`>|HZrovBlWUK<*P$)2EufFILzpjR@-q3_%9J&$`%F)Dp(Sth*j$FTJuubC0!cH9Ul"
        "ItSY^<F&ICW(-y>c6@Y~PgIB_1<BU2!3$eB7Q7#~)=aSIx$~f;E?(UQ;6(Erk!-D^d`lBTg!4Anui*6@`20Dz990OI=8J$hlnlRa"
        "|NQAfW&"
    ),
    "pandas 3.1.1, protocol 5": (
        "T>t<81poj4|NsC0{{TP%PJ2eabZMm!yMb=?0U^IUVXcT?kwIu>0Z1e$VFI*$<Tg9dp2{VGa$FU1yt6)qse796=<0M!o9jto9%x~K"
        "kD(+}qn<s%$Sr#pCsV6rXtKulYbwnvYxHmAjdp6<YI*xNErwPO1j*b1j`>nk`R8X5lvo~642Jo0cxb#^+1+w7+}-k>LX}{et3GX7"
        "_%+lRo~=%%pHezK26o0hii%257H#4NezWlsxD2g{uED4I^u}vP_!Hp5l*RiT^#$jy&Mkq<_X(nyp&RXx9HM)41$x_+1ng@|?s7ki"
        "vjL!|L;fMrH=utgyhq69NSF1PW;)edO&D7;O+S>yqKCEL2L~sz7gG+_!n>!UoHlHv@phib!0=`+lR%*<yW=W4HeQAdqXtUJD8;=o"
        "S$*l}_C3Ea!fh~}Xg_=KL?3f4E065~3q0*s)w!|&FhtJLy_~UE!SQ&SiJQZ)6&kK2`&EokxZZS?zSM_`g!6*Fv}wnW*Eqw_dh*c4"
        "Y+r!<JRZ5#`8{u96=$_atK4rWUL8Jg1qNJa6+jQ}l+n7pVlQHxzONy7T5Ktdco-a0v^0t?bEr>p)HssQYXt{4x)Aliw`BUV%KQNc"
        "W`h&Ya1#5;;*9=6RMSnmeibUs7eKjWz)Xtz+3@f+Qo*@Xr;H`!*6vdQ6`5g)0iCT|)_B%(kFBC9EplrXozIx$RJVnS%&*hbjhfXD"
        "llG7|AD6mGdQ&iMtBv96M!z#2Wlc#qNsti7%zwdn>UYyD6q`e2UqiDkFe@`{R14VTFysps2GOc~_o4jn&<I?uC^A^qS2Gq&$`(Gp"
        "cZ(K68vHG539f454Qi!nhml{D^ATdp@#@k+8QFt4#qTEKOYjqI$#FdaQxr?7#BhNltql@3Aa|fF$e!0bGC;ix-uy#!kOguq@z=pj"
        "P->jUM~KDZIfbe-rRW`(2Ln)3P>qTK?=c2w$!yI*2X?Zcbqd!B+0jrjXVnOkDi)s_HWyq)^Gpe7{4bdXth9QBS0O_mb?r3SkzOvS"
        "YS7RZ_7T(C0mW~d5_UY1QY%@AY{lt~)|vnO(x;j"
    ),
}
EXPECTED = {
    "P01_11_0": QuestionPair("What is done with the plates?", "What does the hand take?"),
    "P02_101_0": QuestionPair("How does the tap end up lower?", "Which thing is put down, a café's?"),
}


def unpacked(name: str) -> bytes:
    return lzma.decompress(base64.b85decode(PICKLES[name]))


def refused(path) -> str:
    with pytest.raises(DataError) as caught:
        read_questions(str(path))
    text = str(caught.value)
    assert "\n" not in text and text.startswith(str(path)) and text.endswith(".")
    return text


@pytest.mark.parametrize("name", PICKLES)
def test_pickles_of_pandas(tmp_path, name):
    path = tmp_path / "EPIC_100_train_actions_gpt_questions_clean.pkl"
    path.write_bytes(unpacked(name))
    assert read_questions(str(path)) == EXPECTED


@pytest.mark.parametrize(
    "header", ["narration_id,verb_question,noun_question", "narration_id,verb question,noun question"]
)
def test_csv_twin(tmp_path, header):
    rows = [f'{name},{pair.verb},"{pair.noun}"' for name, pair in EXPECTED.items()]
    path = tmp_path / "questions.csv"
    path.write_text("\n".join([header, *rows]), encoding="utf-8")
    assert read_questions(str(path)) == EXPECTED


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            "narration_id,verb_question\na,b\n",
            "has no column noun_question; it needs narration_id, verb_question, noun_",
        ),
        ("narration,verb_question,noun_question\na,b,c\n", "has no column narration_id;"),
        ("narration_id,verb_question,noun_question\n", "has no rows"),
        (
            "narration_id,verb_question,noun_question\na,b,c\nd,,f\ng, ,h\n",
            "has 2 segments without both questions: d, g;",
        ),
        ("narration_id,verb_question,noun_question\na,b,c\na,d,e\n", "has 1 segments with more than one row: a;"),
    ],
)
def test_mistakes_are_one_sentence(tmp_path, text, sentence):
    path = tmp_path / "questions.csv"
    path.write_text(text)
    assert sentence in refused(path)


def test_pickles_that_are_something_else(tmp_path):
    path = tmp_path / "questions.pkl"
    whole = unpacked("pandas 2.2.3, protocol 5")
    path.write_bytes(whole.replace(b"verb question", b"verb_answers_"))
    assert "has no column verb_question" in refused(path)
    path.write_bytes(whole[:-50])
    assert "is not a complete pickle" in refused(path)
    path.write_bytes(pickle.dumps({"narration_id": ["a"]}))
    assert "is not a table as pandas 1.3 to 3 pickles it" in refused(path)
    path.write_bytes(pickle.dumps(whole))
    assert "is not a table" in refused(path)


def test_what_is_no_text_is_named_by_its_row(tmp_path):
    doubled = ["x"]
    for _ in range(60):
        doubled = [doubled, doubled]  # whose text has no end
    path = tmp_path / "questions.pkl"
    columns, rows = ["verb question", "noun question"], [["a?", "b?"], ["a?", None], ["a?", "b?"]]
    whole = _pickled_frame("narration_id", ["P01_11_0", "P01_11_1", "twice"], columns, rows)
    path.write_bytes(whole.replace(b"X\x05\x00\x00\x00twice", pickle.dumps(doubled, 0)[:-1]))
    assert "has 2 segments without both questions: P01_11_1, number 3;" in refused(path)


class Exploit:
    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def test_nothing_runs(tmp_path):
    path, mark = tmp_path / "questions.pkl", tmp_path / "was_here"
    path.write_bytes(pickle.dumps(Exploit(f"touch {mark}")))
    assert "system, but only the tables of pandas are read from a pickle" in refused(path)
    # Names that real tables have and that pandas or numpy would run something for.
    for module, name in (
        ("pandas", "eval"),
        ("numpy.testing._private.utils", "runstring"),
        ("pandas.core.frame", "os.system"),
    ):
        path.write_bytes(f"c{module}\n{name}\n(S'open({str(mark)!r}, 1)'\ntR.".encode())
        assert "is not a table" in refused(path)
    assert not mark.exists()


def test_generic_questions_name_no_answer():
    assert GENERIC.verb != GENERIC.noun and all(text.endswith("?") and "<mask>" not in text for text in GENERIC)
